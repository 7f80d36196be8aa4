/* Norms: x / ||x|| of each group of channels with 30 fraction bits, then requantized with the gain. */
#include "rows.h"

/* 1 / sqrt(square) = r * 2^(h - 62) */
typedef struct {
    u32 r;
    s32 h;
} Inverse;

static Inverse inverse_norm(u64 square) {
    int shift = __builtin_clzll(square) & ~1;
    Inverse i = {reciprocal(root(square << shift)), shift / 2};
    return i;
}

typedef struct {
    u64 distances, squares;
} Sums;

/* Sums over |x - zero| and its squares, of up to 2^14 values. */
static Sums sums(const u8 *x, s32 bytes, s32 count, Vector zero) {
    Pair distances = Q6_W_vcombine_VV(zeros(), zeros()), squares = distances;
    for (s32 c = 0; c < count; c += BLOCK) {
        Pair block = load_block(x + c * bytes, bytes);
#pragma clang loop unroll(full)
        for (int k = 0; k < 2; k++) {
            s32 left = count - c - k * HALF;
            Vector d = Q6_Vuh_vabsdiff_VuhVuh(half(block, k), zero);
            if (left < HALF) d = left <= 0 ? zeros() : Q6_V_vmux_QVV(Q6_Q_vsetq_R(left * 2), d, zeros());
            Pair square = Q6_Wuw_vmpy_VuhVuh(d, d);
            distances = Q6_Ww_vaddacc_WwVuhVuh(distances, d, zeros());
            /* low halves, and high halves */
            squares = Q6_Ww_vaddacc_WwVuhVuh(squares, first_half(square), second_half(square));
        }
    }
    u32 sum[4];
    sum_lanes(sum, first_half(distances), second_half(distances), first_half(squares), second_half(squares));
    Sums s = {sum[0] + sum[1], ((u64)sum[3] << 16) + sum[2]};
    return s;
}

/* floor(128 * sum / (2 * count) + 1/2), the sum below 2^30 */
INLINE s32 mean_of(u64 sum, u32 count) {
    u64 x = 128 * sum + count, y = 2 * count;
    s32 shift = __builtin_clz((u32)y);
    u64 q = x * (reciprocal((u32)y << shift) >> 5) >> (57 - shift); /* 1 less at most */
    return (s32)(q + (x - q * y >= y));
}

/* floor(d * r / 2^(32 - h) + 1/2). |d| * 2^h < 2^32, because d is one of the squares of the sum. */
INLINE Vector direction(Vector d, const Inverse *i) {
    int one = i->r >> 31 != 0; /* r = 2^31 does not fit s32 */
    if (i->h) {
        d = Q6_Vw_vasl_VwR(d, i->h - 1);
        return one ? d : multiply_round(d, splat((s32)i->r));
    }
    return shift_right_round(one ? d : multiply_floor(d, splat((s32)i->r)), 1);
}

INLINE Pair directions(Pair d, const Inverse *i) {
    return Q6_W_vcombine_VV(direction(second_half(d), i), direction(first_half(d), i));
}

void norm(const Machine *machine, const Op_norm *op) {
    u64 epsilon = (u64)op->epsilon_high << 32 | op->epsilon;
    s32 size = op->channels / op->groups, a_bytes = op->a_bits / 8;
    Result result = make_result(op->zero, op->out_bits);
    RowScale scale = row_scale(machine->vtcm + op->scale, op->scale_step, op->channels);
    Vector zero = splat_halves(op->centered ? 0 : op->a_zero), factor = splat_halves(op->centered ? 64 : 1);
    for (s32 t = 0; t < op->tokens; t++)
        for (s32 first = 0; first < op->channels; first += size) {
            s32 begin = t * op->channels + first, mean = op->a_zero;
            const u8 *a = machine->vtcm + op->a + begin * a_bytes;
            Sums s = sums(a, a_bytes, size, zero);
            if (op->centered) {
                /* of 64 * x - mean */
                mean = mean_of(s.distances, (u32)size);
                s64 m = mean;
                s.squares = 4096 * s.squares + (u64)(m * (size * m - 128 * (s64)s.distances));
            }
            Inverse inverse = inverse_norm(s.squares + epsilon);
            u8 *out = machine->vtcm + op->out + begin * result.bytes;
            for (s32 c = 0; c < size; c += BLOCK) {
                Pair x = load_block(a + c * a_bytes, a_bytes), y[2];
#pragma clang loop unroll(full)
                for (int k = 0; k < 2; k++) {
                    y[k] = directions(multiply_add(half(x, k), factor, splat(-mean)), &inverse);
                    y[k] = requantize_pair(y[k], scales_at(&scale, (u32)(first + c + k * HALF)), scale.left);
                }
                store_block(out + c * result.bytes, y[0], y[1], &result, size - c);
            }
        }
}
