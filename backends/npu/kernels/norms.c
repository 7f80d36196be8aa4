/* Norms: x / ||x|| of each group of channels with 30 fraction bits, then requantized with the gain. */
#include "vectors.h"

/* floor(sqrt(x)), bit by bit. */
static u32 integer_sqrt(u64 x) {
    u32 root = 0;
    for (int i = 31; i >= 0; i--) {
        u32 next = root | (u32)1 << i;
        if ((u64)next * next <= x) root = next;
    }
    return root;
}

/* 1 / sqrt(square) = r * 2^(h - 62) */
typedef struct {
    u64 r;
    s32 h;
} Inverse;

static Inverse inverse_norm(u64 square) {
    int shift = __builtin_clzll(square) & ~1;
    Inverse i = {divide((u64)1 << 62, integer_sqrt(square << shift)), shift / 2};
    return i;
}

/* The channels that one norm is taken of, and how they become deviations: d = (x << left) - mean. */
typedef struct {
    const u8 *x;
    s32 x_bits, count, left, mean;
} Group;

/* Lanes from `count` on get 0. */
INLINE Vector deviations(const Group *g, s32 c) {
    Vector x = load_words(g->x + c * (g->x_bits / 8), g->x_bits);
    Vector d = Q6_Vw_vsub_VwVw(Q6_Vw_vasl_VwR(x, g->left), splat(g->mean));
    return keep_lanes(d, 0, g->count - c);
}

static u64 sum_of_values(const Group *g) {
    Vector sum = zeros();
    for (s32 c = 0; c < g->count; c += LANES) sum = Q6_Vw_vadd_VwVw(sum, deviations(g, c));
    return sum_lanes(sum);
}

/* |d| < 2^22 in halves of 11 bits: over 2^14 channels the sums of products of halves stay below 2^31. */
static u64 sum_of_squares(const Group *g) {
    Vector high2 = zeros(), mixed = zeros(), low2 = zeros();
    for (s32 c = 0; c < g->count; c += LANES) {
        Vector d = Q6_Vw_vabs_Vw(deviations(g, c));
        Vector high = Q6_Vw_vasr_VwR(d, 11), low = Q6_V_vand_VV(d, splat(2047));
        high2 = Q6_Vw_vmpyieacc_VwVwVuh(high2, high, high);
        mixed = Q6_Vw_vmpyieacc_VwVwVuh(mixed, high, low);
        low2 = Q6_Vw_vmpyieacc_VwVwVuh(low2, low, low);
    }
    return (sum_lanes(high2) << 22) + (sum_lanes(mixed) << 12) + sum_lanes(low2);
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

void norm(const Machine *machine, const Op_norm *op) {
    u64 epsilon = (u64)op->epsilon_high << 32 | op->epsilon;
    s32 size = op->channels / op->groups;
    Result result = make_result(op->zero, op->out_bits);
    for (s32 t = 0; t < op->tokens; t++)
        for (s32 first = 0; first < op->channels; first += size) {
            s32 begin = t * op->channels + first;
            Group g = {machine->vtcm + op->a + begin * (op->a_bits / 8), op->a_bits, size, 0, 0};
            if (op->centered) {
                g.mean = (s32)divide(128 * sum_of_values(&g) + (u64)size, 2 * (u64)size);
                g.left = 6;
            } else {
                g.mean = op->a_zero;
            }
            Inverse inverse = inverse_norm(sum_of_squares(&g) + epsilon);
            u8 *out = machine->vtcm + op->out + begin * result.bytes;
            for (s32 c = 0; c < size; c += LANES) {
                Scale scale = load_scale(machine->vtcm + op->scale, op->scale_step, first + c);
                Vector y = direction(deviations(&g, c), &inverse);
                store_words(out + c * result.bytes, requantize(y, scale), &result, size - c);
            }
        }
}
