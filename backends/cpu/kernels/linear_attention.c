/* Linear attention with a state: token by token, some columns of a head's state at a time. */

#include <string.h>

#include "kernels.h"

#define COLUMNS 64 /* computed together */
#define LONGEST_DECAY (1 << 29)

/* Of the columns of one head that a thread computes. state: [key_dim] rows that lie `stride` apart. */
typedef struct {
    const LinearAttention *p;
    const s32 *exp2;
    s32 *state;
    size_t stride;
    int head, columns;
} Part;

/* 2^-u with 30 fraction bits, of octaves with 24: docs/ops.md, int.linear_attention. */
INLINE s32 decay_factor(const s32 *exp2, s32 u) {
    s32 n = (u + (1 << 12)) >> 13, rest = u - (n << 13);
    s64 entry = exp2[n & 2047];
    return (s32)shift_right_round(entry - shift_right_round(entry * (90852 * (s64)rest), 41), n >> 11);
}

INLINE s32 factor_of(const Part *part, const void *step, size_t row, int i) {
    const LinearAttention *p = part->p;
    size_t c = (size_t)part->head * (size_t)p->decays + (size_t)i;
    size_t at = (row * (size_t)p->heads + (size_t)part->head) * (size_t)p->steps + (size_t)(p->steps > 1 ? i : 0);
    int shift = p->decay_shift[c];
    s32 d = load(step, p->step_bits, at) - p->step_zero;
    s32 u = requantize(d, p->decay_multiplier[c], shift < 0 ? -shift : 0, shift > 0 ? shift : 0);
    return decay_factor(part->exp2, clamp(u, 0, LONGEST_DECAY));
}

/* S = round(S * e, 30); sum += key * S */
INLINE void forget(s32 *s, s64 *sum, int n, s32 factor, s32 key) {
    for (int i = 0; i < n; i++) {
        s[i] = (s32)(((s64)s[i] * factor + ((s64)1 << 29)) >> 30);
        sum[i] += (s64)key * s[i];
    }
}

/* S = S + round(key * written); sum += query * S */
INLINE void take_up(s32 *s, s64 *sum, const s32 *written, int n, s32 key, s32 query, int shift) {
    s64 half = shift > 0 ? (s64)1 << (shift - 1) : 0;
    for (int i = 0; i < n; i++) {
        s[i] = saturate32(s[i] + (((s64)key * written[i] + half) >> shift));
        sum[i] += (s64)query * s[i];
    }
}

/* What the state lacks of a value. */
INLINE void subtract_memory(const LinearAttention *p, s32 *written, const s64 *sum, int n) {
    for (int i = 0; i < n; i++) {
        s32 memory = saturate32(shift_right_round(sum[i], p->sum_shift));
        memory = requantize(memory, p->memory_multiplier, p->memory_left, p->memory_right);
        written[i] = saturate32((s64)written[i] - memory);
    }
}

INLINE void run_token(const Part *part, const LinearOperands *x, size_t t, int column, s32 *acc) {
    const LinearAttention *p = part->p;
    int n = part->columns, key_head = part->head / (p->heads / p->key_heads);
    size_t keys = (t * (size_t)p->key_heads + (size_t)key_head) * (size_t)p->key_dim;
    size_t values = (t * (size_t)p->heads + (size_t)part->head) * (size_t)p->value_dim + (size_t)column;
    s64 sum[COLUMNS] = {0};
    s32 value[COLUMNS], written[COLUMNS], factor = 0;
    for (int k = 0; k < p->key_dim; k++) {
        if (k < p->decays) factor = factor_of(part, x->step, t, k);
        s32 key = load(x->k, p->k_bits, keys + (size_t)k) - p->k_zero;
        forget(part->state + (size_t)k * part->stride, sum, n, factor, key);
    }
    for (int i = 0; i < n; i++) {
        value[i] = load(x->v, p->v_bits, values + (size_t)i) - p->v_zero;
        written[i] = value[i] * (1 << p->value_shift);
    }
    if (p->delta) subtract_memory(p, written, sum, n);
    if (p->beta_bits) {
        s32 d = load(x->beta, p->beta_bits, t * (size_t)p->heads + (size_t)part->head) - p->beta_zero;
        s64 beta = requantize(d, p->beta_multiplier, p->beta_left, p->beta_right);
        for (int i = 0; i < n; i++) written[i] = saturate32(shift_right_round(written[i] * beta, 24));
    }
    memset(sum, 0, sizeof sum);
    for (int k = 0; k < p->key_dim; k++) {
        s32 key = load(x->k, p->k_bits, keys + (size_t)k) - p->k_zero;
        s32 query = load(x->q, p->q_bits, keys + (size_t)k) - p->q_zero;
        take_up(part->state + (size_t)k * part->stride, sum, written, n, key, query, p->update_shift);
    }
    s64 skip = p->skip ? p->skip[part->head] : 0;
    for (int i = 0; i < n; i++) {
        s64 past = shift_right_round(value[i] * skip, p->skip_shift);
        acc[i] = saturate32(shift_right_round(sum[i], p->acc_shift) + past);
    }
}

/* What a sequence begins with. */
INLINE void begin_state(const Part *part, int column) {
    const LinearAttention *p = part->p;
    size_t first = (size_t)part->head * (size_t)p->key_dim * part->stride + (size_t)column;
    for (int k = 0; k < p->key_dim; k++) {
        s32 *row = part->state + (size_t)k * part->stride;
        size_t bytes = (size_t)part->columns * sizeof *row;
        if (p->initial)
            memcpy(row, p->initial + first + (size_t)k * part->stride, bytes);
        else
            memset(row, 0, bytes);
    }
}

INLINE void linear_attention(const Run *r, const LinearAttention *p, const s32 *exp2, const LinearOperands *x,
                             void *y, const int bits) {
    int blocks = (p->value_dim + COLUMNS - 1) / COLUMNS, first, last;
    s32 *states = (s32 *)(void *)r->cache[p->cache];
    share(r, p->heads * blocks, 1, &first, &last);
    for (int number = first; number < last; number++) {
        int head = number / blocks, column = number % blocks * COLUMNS;
        int columns = p->value_dim - column < COLUMNS ? p->value_dim - column : COLUMNS;
        size_t stride = (size_t)p->value_dim;
        s32 *state = states + (size_t)head * (size_t)p->key_dim * stride + column;
        Part part = {p, exp2, state, stride, head, columns};
        if (r->position == p->first_position) begin_state(&part, column);
        for (int t = 0; t < r->tokens; t++) {
            s32 acc[COLUMNS];
            run_token(&part, x, (size_t)t, column, acc);
            int channel = head * p->value_dim + column;
            size_t at = (size_t)t * (size_t)p->heads * stride + (size_t)channel;
            requant_row(&p->requant, acc, channel, columns, (u8 *)y + at * (size_t)(bits / 8), bits);
        }
    }
    barrier(r);
}

#define LINEAR_ATTENTION(bits)                                                                                \
    void linear_attention_u##bits(Run *r, const LinearAttention *p, const s32 *exp2, const LinearOperands *x, \
                                  void *y) {                                                                  \
        linear_attention(r, p, exp2, x, y, bits);                                                             \
    }
LINEAR_ATTENTION(8) LINEAR_ATTENTION(16)
