/* Causal attention over a cache that is stored as weights.
 *
 * Keys: blocks of 32 positions, a position being an output: s32 corrections[32], then s8 [dim / 4][32][4].
 * Values: blocks of 32 channels, a position being an input: s8 [positions / 4][32][4]. Both hold x - 128.
 */
#include "vectors.h"

INLINE s32 key_block_bytes(s32 head_dim) { return VECTOR_BYTES + LANES * ((head_dim + 3) / 4 * 4); }

void write_keys(const Machine *machine, const Op_write_keys *op) {
    s32 block_bytes = key_block_bytes(op->head_dim), dim = op->head_dim;
    for (s32 t = 0; t < op->tokens; t++)
        for (s32 h = 0; h < op->heads; h++) {
            s32 p = machine->position + t, begin = p / LANES * block_bytes;
            if (begin + block_bytes > op->head_bytes) return; /* padding behind the last position */
            u8 *block = machine->cache + op->cache + h * op->head_bytes + begin;
            const u8 *key = machine->vtcm + op->a + (t * op->heads + h) * dim;
            u8 *words = block + VECTOR_BYTES + p % LANES * 4;
            s32 sum = 0;
            for (s32 d = 0; d < dim; d++) {
                words[d / 4 * VECTOR_BYTES + d % 4] = key[d] ^ 128;
                sum += key[d] - 128;
            }
            ((s32 *)block)[p % LANES] = -op->q_zero * sum;
        }
}

void write_values(const Machine *machine, const Op_write_values *op) {
    for (s32 t = 0; t < op->tokens; t++)
        for (s32 h = 0; h < op->heads; h++) {
            s32 p = machine->position + t;
            if (p >= op->capacity) return;
            const u8 *value = machine->vtcm + op->a + (t * op->heads + h) * op->head_dim;
            u8 *head = machine->cache + op->cache + h * op->head_bytes + p / 4 * VECTOR_BYTES + p % 4;
            for (s32 d = 0; d < op->head_dim; d++)
                head[d / LANES * op->capacity * LANES + d % LANES * 4] = value[d] ^ 128;
        }
}

/* Positions [begin, end) that a token sees. */
typedef struct {
    s32 begin, end;
} Range;

INLINE Range visible(const Machine *machine, s32 t, s32 window, s32 capacity) {
    s32 end = machine->position + t + 1;
    Range r = {window && end > window ? end - window : 0, smaller(end, capacity)};
    return r;
}

static void dot_rows(Vector *acc, const u8 *row, const u8 *weights, s32 steps, int rows) {
    if (rows == 1)
        dot(acc, row, weights, steps, 1);
    else if (rows == 2)
        dot(acc, row, weights, steps, 2);
    else
        dot(acc, row, weights, steps, 4);
}

void scores(const Machine *machine, const Op_scores *op) {
    s32 block_bytes = key_block_bytes(op->head_dim), all = op->tokens * op->heads;
    for (s32 first = 0; first < all; first += ROWS) {
        s32 rows = smaller(ROWS, all - first);
        for (s32 r = 0; r < rows; r++) {
            s32 t = (first + r) / op->heads, i = (first + r) % op->heads;
            const u8 *query = machine->vtcm + op->a + t * op->a_row_bytes + i * op->head_dim;
            copy(machine->scratch + r * SCRATCH_ROW, query, op->head_dim);
        }
        s32 begin = visible(machine, first / op->heads, op->window, op->capacity).begin;
        s32 end = visible(machine, (first + rows - 1) / op->heads, op->window, op->capacity).end;
        for (s32 p = begin / LANES * LANES; p < end; p += LANES) {
            const u8 *block = machine->vtcm + op->keys + p / LANES * block_bytes;
            Vector acc[ROWS];
            for (int r = 0; r < ROWS; r++) acc[r] = load_aligned(block);
            dot_rows(acc, machine->scratch, block + VECTOR_BYTES, (op->head_dim + 3) / 4, rows);
            s32 *out = (s32 *)(machine->vtcm + op->out) + first * op->capacity + p;
            for (s32 r = 0; r < rows; r++) *(Vector *)(out + r * op->capacity) = acc[r];
        }
    }
}

INLINE s32 largest_score(const s32 *score, Range seen) {
    Vector largest = splat(INT32_MIN);
    for (s32 p = seen.begin / LANES * LANES; p < seen.end; p += LANES) {
        Vector v = load_aligned(score + p);
        if (p + LANES > seen.end) v = Q6_V_vmux_QVV(Q6_Q_vsetq2_R((seen.end - p) * 4), v, splat(INT32_MIN));
        if (p < seen.begin) v = Q6_V_vmux_QVV(Q6_Q_vsetq2_R((seen.begin - p) * 4), splat(INT32_MIN), v);
        largest = Q6_Vw_vmax_VwVw(largest, v);
    }
    return largest_lane(largest);
}

/* exponential[p] = 2^-u with 30 fraction bits, u = the rescaled distance to the largest score; 0 where
 * hidden. Returns the sum. */
static u64 exponentials(const Machine *machine, const Op_softmax *op, const s32 *score, Range seen,
                        s32 *exponential) {
    const u8 *table = machine->vtcm + op->exponentials;
    Scale scale = splat_scale(op->multiplier, op->shift);
    Vector largest = splat(largest_score(score, seen)), high = zeros(), low = zeros();
    for (s32 p = seen.begin / LANES * LANES; p < seen.end; p += LANES) {
        /* a hidden score may be larger: what comes of it is dropped */
        Vector below = Q6_Vw_vsub_VwVw(largest, load_aligned(score + p));
        Vector u = Q6_Vw_vmin_VwVw(requantize(below, scale), splat(65535));
        Vector at = Q6_Vw_vasl_VwR(Q6_V_vand_VV(u, splat(2047)), 2);
        Vector e = Q6_Vw_vasr_VwVw(gather(machine, table, 2048 * 4, at), Q6_Vw_vasr_VwR(u, 11));
        e = keep_lanes(e, seen.begin - p, seen.end - p);
        *(Vector *)(exponential + p) = e;
        /* 2^15 terms a lane of up to 2^30, in halves of 15 bits */
        high = Q6_Vw_vadd_VwVw(high, Q6_Vw_vasr_VwR(e, 15));
        low = Q6_Vw_vadd_VwVw(low, Q6_V_vand_VV(e, splat(0x7fff)));
    }
    return (sum_lanes(high) << 15) + sum_lanes(low);
}

void softmax(const Machine *machine, const Op_softmax *op) {
    s32 *exponential = (s32 *)machine->scratch;
    for (s32 row = 0; row < op->tokens * op->heads; row++) {
        Range seen = visible(machine, row / op->heads, op->window, op->capacity);
        const s32 *score = (const s32 *)(machine->vtcm + op->a) + row * op->capacity;
        u64 total = exponentials(machine, op, score, seen, exponential);
        s32 k = larger(33 - __builtin_clzll(total), 0);
        u64 reciprocal = divide((u64)1 << 61, total >> k);
        u8 *out = machine->vtcm + op->out + row * op->capacity * 2;
        for (s32 p = seen.begin / LANES * LANES; p < seen.end; p += LANES) {
            Vector e = load_aligned(exponential + p);
            /* a reciprocal of 2^31 does not fit s32 */
            if (!(reciprocal >> 31)) e = multiply_floor(e, splat((s32)reciprocal));
            Vector y = shift_right_round(e, 15 + k);
            store_bytes(out + p * 2, Q6_Vh_vpacke_VwVw(y, y), LANES * 2);
        }
    }
}

/* Probabilities as rows of high and of low bytes; returns their sum. */
static s32 split_probabilities(const u8 *row, Range seen, u8 *planes) {
    Vector sum = zeros();
    for (s32 p = seen.begin / LANES * LANES; p < seen.end; p += LANES) {
        Vector v = load(row + p * 2);
        store_bytes(planes + p, Q6_Vb_vpacko_VhVh(v, v), LANES);
        store_bytes(planes + SCRATCH_ROW + p, Q6_Vb_vpacke_VhVh(v, v), LANES);
        sum = Q6_Vw_vadd_VwVw(sum, widen_u16(v));
    }
    return (s32)sum_lanes(sum);
}

void weighted_values(const Machine *machine, const Op_weighted_values *op) {
    Result result = make_result(op->zero, op->out_bits);
    Scale scale = splat_scale(op->multiplier, op->shift);
    for (s32 row = 0; row < op->tokens * op->heads; row++) {
        s32 t = row / op->heads, i = row % op->heads;
        Range seen = visible(machine, t, op->window, op->capacity);
        s32 begin = seen.begin / LANES * LANES, steps = (seen.end - begin + 3) / 4;
        const u8 *p = machine->vtcm + op->a + row * op->capacity * 2;
        Vector offset = splat((128 - op->v_zero) * split_probabilities(p, seen, machine->scratch));
        u8 *out = machine->vtcm + op->out + t * op->out_row_bytes + i * op->head_dim * result.bytes;
        for (s32 d = 0; d < op->head_dim; d += LANES) {
            const u8 *values = machine->vtcm + op->values + (d * op->capacity + begin * LANES);
            Vector acc[2] = {zeros(), offset};
            dot_rows(acc, machine->scratch + begin, values, steps, 2);
            Vector y = Q6_Vw_vadd_VwVw(Q6_Vw_vasl_VwR(acc[0], 8), acc[1]);
            store_words(out + d * result.bytes, requantize(y, scale), &result, op->head_dim - d);
        }
    }
}
