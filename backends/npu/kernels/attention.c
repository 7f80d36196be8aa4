/* Causal attention over a cache that is stored as weights.
 *
 * Keys: blocks of 32 positions, a position being an output: s32 corrections[32], then s8 [dim / 4][32][4].
 * Values: blocks of 32 channels, a position being an input: s8 [positions / 4][32][4]. Both hold x - 128.
 */
#include "rows.h"

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

INLINE Vector largest_score(const s32 *score, Range seen) {
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
    /* a shift to the left need not saturate: 2^17 times half is more than 65535 already */
    s32 left = smaller(larger(-op->shift, 0), 17);
    Vector limit = splat(op->shift < 0 ? 1 << (17 - left) : INT32_MAX), largest = largest_score(score, seen);
    Pair sums = Q6_W_vcombine_VV(zeros(), zeros());
    for (s32 p = seen.begin / LANES * LANES; p < seen.end; p += LANES) {
        /* a hidden score may be larger: what comes of it is dropped */
        Vector u = Q6_Vw_vsub_VwVw(largest, load_aligned(score + p));
        u = Q6_Vw_vasl_VwR(Q6_Vw_vmin_VwVw(u, limit), left);
        u = Q6_Vw_vmin_VwVw(rescale(u, scale), splat(65535));
        Vector at = Q6_Vw_vasl_VwR(Q6_V_vand_VV(u, splat(2047)), 2);
        Vector e = Q6_Vw_vasr_VwVw(gather(machine, table, 2048 * 4, at), Q6_Vw_vasr_VwR(u, 11));
        if (p < seen.begin || p + LANES > seen.end) e = keep_lanes(e, seen.begin - p, seen.end - p);
        *(Vector *)(exponential + p) = e;
        sums = Q6_Ww_vaddacc_WwVuhVuh(sums, e, zeros()); /* low halves, and high halves: 2^15 terms a lane */
    }
    /* sums of halves again, because 32 lanes may pass 2^32 */
    Pair low = Q6_Ww_vadd_VuhVuh(first_half(sums), zeros());
    Pair high = Q6_Ww_vadd_VuhVuh(second_half(sums), zeros());
    u32 sum[4];
    sum_lanes(sum, first_half(low), second_half(low), first_half(high), second_half(high));
    return ((u64)sum[3] << 32) + ((u64)sum[1] + sum[2] << 16) + sum[0];
}

/* exponential / total, 15 fraction bits, for whole blocks of 32 positions */
static void divide_all(const s32 *exponential, u64 total, Range seen, u8 *out) {
    s32 k = larger(33 - __builtin_clzll(total), 0), end = (seen.end + LANES - 1) / LANES * LANES;
    u32 factor = reciprocal((u32)(total >> k) << 1);
    for (s32 p = seen.begin / LANES * LANES; p < end; p += 2 * LANES) {
        Vector y[2];
        for (int i = 0; i < 2; i++) {
            y[i] = load_aligned(exponential + p + i * LANES);
            /* a factor of 2^31 does not fit s32 */
            if (!(factor >> 31)) y[i] = multiply_floor(y[i], splat((s32)factor));
            y[i] = shift_right_round(y[i], 15 + k);
        }
        store_part(out + p * 2, Q6_Vh_vpacke_VwVw(y[1], y[0]), (end - p) * 2);
    }
}

void softmax(const Machine *machine, const Op_softmax *op) {
    s32 *exponential = (s32 *)machine->scratch;
    const s32 *score = (const s32 *)(machine->vtcm + op->a);
    u8 *out = machine->vtcm + op->out;
    for (s32 t = 0; t < op->tokens; t++) {
        Range seen = visible(machine, t, op->window, op->capacity);
        for (s32 i = 0; i < op->heads; i++, score += op->capacity, out += op->capacity * 2)
            divide_all(exponential, exponentials(machine, op, score, seen, exponential), seen, out);
    }
}

/* Probabilities as rows of high and of low bytes; returns their sum, in each lane. */
static Vector split_probabilities(const u8 *row, Range seen, u8 *planes) {
    Pair sum = Q6_W_vcombine_VV(zeros(), zeros());
    s32 end = (seen.end + LANES - 1) / LANES * LANES;
    for (s32 p = seen.begin / LANES * LANES; p < end; p += HALF) {
        Vector v = load(row + p * 2);
        if (p + HALF > end) v = keep_lanes(v, 0, LANES / 2);
        store(planes + p, Q6_Vb_vpacko_VhVh(v, v));
        store(planes + SCRATCH_ROW + p, Q6_Vb_vpacke_VhVh(v, v));
        sum = Q6_Ww_vaddacc_WwVuhVuh(sum, v, zeros());
    }
    return sum_everywhere(Q6_Vw_vadd_VwVw(first_half(sum), second_half(sum)));
}

void weighted_values(const Machine *machine, const Op_weighted_values *op) {
    Result result = make_result(op->zero, op->out_bits);
    Scale scale = splat_scale(op->multiplier, op->shift);
    Vector zero = splat(128 - op->v_zero);
    const u8 *p = machine->vtcm + op->a;
    for (s32 t = 0; t < op->tokens; t++) {
        Range seen = visible(machine, t, op->window, op->capacity);
        s32 begin = seen.begin / LANES * LANES, steps = (seen.end - begin + 3) / 4;
        u8 *out = machine->vtcm + op->out + t * op->out_row_bytes;
        for (s32 i = 0; i < op->heads; i++, p += op->capacity * 2, out += op->head_dim * result.bytes) {
            Vector offset = multiply_s16(split_probabilities(p, seen, machine->scratch), zero);
            for (s32 d = 0; d < op->head_dim; d += LANES) {
                const u8 *values = machine->vtcm + op->values + (d * op->capacity + begin * LANES);
                Vector acc[2] = {zeros(), offset};
                dot(acc, machine->scratch + begin, values, steps, 2);
                Vector y = Q6_Vw_vadd_VwVw(Q6_Vw_vasl_VwR(acc[0], 8), acc[1]);
                y = op->shift < 0 ? requantize(y, scale) : rescale(y, scale);
                store_words(out + d * result.bytes, y, &result, op->head_dim - d);
            }
        }
    }
}
