/* Look-ups, sums, products and rotations: one token's channels, or one of many tokens, a thread. */
#include "kernels.h"

INLINE void embedding_kind(const Run *r, const Embedding *e, const s32 *index, void *y, int bits) {
    int t0, t1, c0, c1;
    share_elements(r, e->channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++) {
        s32 row = index ? index[t] : r->position + t;
        const s8 *lane = (const s8 *)e->table + (size_t)(row / 16) * e->block_bytes + row % 16 * 4;
        s32 m = e->multiplier[row], s = e->shift[row];
        for (int c = c0; c < c1; c++) {
            s64 v = requantize(lane[c / 4 * 64 + c % 4], m, s < 0 ? -s : 0, s > 0 ? s : 0);
            store(y, bits, t * e->channels + c, clamp(v + e->zero, 0, e->high));
        }
    }
    barrier(r);
}
void embedding_u8(Run *r, const Embedding *e, const s32 *index, void *y) {
    embedding_kind(r, e, index, y, 8);
}
void embedding_u16(Run *r, const Embedding *e, const s32 *index, void *y) {
    embedding_kind(r, e, index, y, 16);
}

INLINE void add_kind(const Run *r, const Add *p, int channels, const void *a, const int abits,
                     const void *b, const int bbits, void *y, const int bits) {
    int t0, t1, c0, c1;
    share_elements(r, channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++)
        for (int c = c0; c < c1; c++) {
            size_t i = (size_t)t * (size_t)channels + (size_t)c;
            s32 da = (load(a, abits, i) - p->a_zero) * (1 << 14);
            s32 db = (load(b, bbits, i) - p->b_zero) * (1 << 14);
            s64 sum = (s64)requantize(da, p->a_multiplier, p->a_left, p->a_right) +
                      requantize(db, p->b_multiplier, p->b_left, p->b_right);
            store(y, bits, (int)i, clamp(shift_right_round(sum, 8) + p->zero, 0, p->high));
        }
    barrier(r);
}

INLINE void mul_kind(const Run *r, const Mul *p, int channels, const void *a, const int abits,
                     const void *b, const int bbits, void *y, const int bits) {
    int t0, t1, c0, c1;
    share_elements(r, channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++)
        for (int c = c0; c < c1; c += 64) {
            s32 acc[64];
            int n = c1 - c < 64 ? c1 - c : 64;
            size_t base = (size_t)t * (size_t)channels + (size_t)c;
            for (int i = 0; i < n; i++) {
                s32 da = load(a, abits, base + (size_t)i) - p->a_zero;
                s32 db = load(b, bbits, base + (size_t)i) - p->b_zero;
                acc[i] = (s32)shift_right_round((s64)da * db, p->acc_shift);
            }
            requant_row(&p->requant, acc, c, n, (u8 *)y + base * (size_t)(bits / 8), bits);
        }
    barrier(r);
}

#define BINARY(name, type, abits, bbits, bits)                                                   \
    void name##_u##abits##_u##bbits##_u##bits(Run *r, const type *p, int channels, const void *a, \
                                              const void *b, void *y) {                          \
        name##_kind(r, p, channels, a, abits, b, bbits, y, bits);                                \
    }
#define BINARY_ALL(name, type)                                                                   \
    BINARY(name, type, 8, 8, 8) BINARY(name, type, 8, 8, 16) BINARY(name, type, 8, 16, 8)        \
    BINARY(name, type, 8, 16, 16) BINARY(name, type, 16, 8, 8) BINARY(name, type, 16, 8, 16)     \
    BINARY(name, type, 16, 16, 8) BINARY(name, type, 16, 16, 16)
INLINE void join_kind(const Run *r, const Join *p, int channels, const void *a, const int abits,
                      const void *b, const int bbits, void *y, const int bits) {
    int t0, t1, c0, c1;
    share_elements(r, channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++)
        for (int c = c0; c < c1; c++) {
            int i = p->index[c], j = i - p->a_channels;
            s32 v;
            if (j < 0) {
                s32 d = load(a, abits, (size_t)t * (size_t)p->a_channels + (size_t)i) - p->a_zero;
                v = requantize(d, p->a_multiplier, p->a_left, p->a_right);
            } else {
                s32 d = load(b, bbits, (size_t)t * (size_t)p->b_channels + (size_t)j) - p->b_zero;
                v = requantize(d, p->b_multiplier, p->b_left, p->b_right);
            }
            store(y, bits, t * channels + c, clamp((s64)v + p->zero, 0, p->high));
        }
    barrier(r);
}

BINARY_ALL(add, Add)
BINARY_ALL(mul, Mul)
BINARY_ALL(join, Join)

INLINE void lut8_kind(const Run *r, const void *table, int channels, const u8 *x, void *y, int bits) {
    int t0, t1, c0, c1;
    share_elements(r, channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++)
        for (int i = t * channels + c0; i < t * channels + c1; i++)
            store(y, bits, i, load(table, bits, x[i]));
    barrier(r);
}
void lut_u8_u8(Run *r, const void *table, int b, int channels, const void *x, void *y) {
    (void)b;
    lut8_kind(r, table, channels, x, y, 8);
}
void lut_u8_u16(Run *r, const void *table, int b, int channels, const void *x, void *y) {
    (void)b;
    lut8_kind(r, table, channels, x, y, 16);
}

/* Knots every 2^b inputs, 4 fraction bits, joined by lines. */
INLINE void lut16_kind(const Run *r, const s32 *knots, int b, int channels, const u16 *x, void *y,
                       int bits) {
    int t0, t1, c0, c1;
    share_elements(r, channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++)
        for (int i = t * channels + c0; i < t * channels + c1; i++) {
            s32 k = x[i] >> b, rest = x[i] & ((1 << b) - 1);
            s64 line = (s64)knots[k] * ((1 << b) - rest) + (s64)knots[k + 1] * rest;
            store(y, bits, i, clamp(shift_right_round(line, b + 4), 0, (1 << bits) - 1));
        }
    barrier(r);
}
void lut_u16_u8(Run *r, const void *table, int b, int channels, const void *x, void *y) {
    lut16_kind(r, table, b, channels, x, y, 8);
}
void lut_u16_u16(Run *r, const void *table, int b, int channels, const void *x, void *y) {
    lut16_kind(r, table, b, channels, x, y, 16);
}

/* Channels i * hop and i * hop + gap of a head are a pair. The sums fit in s32 (mqc.analysis.proofs); unsigned ones
   wrap in a program that was altered, as the oracle's do. */
INLINE void rotate_head(const Rope *p, const s16 *cos, const s16 *sin, const void *x, const int xbits,
                        size_t base, s32 *acc, int gap, int hop) {
    for (int i = 0; i < p->half; i++) {
        int first = i * hop, second = first + gap;
        s32 a = load(x, xbits, base + (size_t)first) - p->x_zero;
        s32 b = load(x, xbits, base + (size_t)second) - p->x_zero;
        acc[first] = (s32)((u32)(a * cos[i]) - (u32)(b * sin[i]));
        acc[second] = (s32)((u32)(b * cos[i]) + (u32)(a * sin[i]));
    }
    for (int i = 2 * p->half; i < p->head_dim; i++)
        acc[i] = (load(x, xbits, base + (size_t)i) - p->x_zero) * (1 << 14);
}

INLINE void rope_kind(const Run *r, const Rope *p, const void *x, const int xbits, void *y, const int bits) {
    int count = r->tokens * p->heads, begin, end, width = p->head_dim;
    share(r, count, 1, &begin, &end);
    s32 acc[width];
    for (int item = begin; item < end; item++) {
        int t = item / p->heads, h = item % p->heads;
        const s16 *cos = p->cos + (size_t)(r->position + t) * (size_t)p->half;
        const s16 *sin = p->sin + (size_t)(r->position + t) * (size_t)p->half;
        size_t base = (size_t)item * (size_t)width;
        if (p->interleaved)
            rotate_head(p, cos, sin, x, xbits, base, acc, 1, 2);
        else
            rotate_head(p, cos, sin, x, xbits, base, acc, p->half, 1);
        requant_row(&p->requant, acc, h * width, width, (u8 *)y + base * (size_t)(bits / 8), bits);
    }
    barrier(r);
}

#define ROPE(xbits, bits)                                                                        \
    void rope_u##xbits##_u##bits(Run *r, const Rope *p, const void *x, void *y) {                \
        rope_kind(r, p, x, xbits, y, bits);                                                      \
    }
ROPE(8, 8) ROPE(8, 16) ROPE(16, 8) ROPE(16, 16)
