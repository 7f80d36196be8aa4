/* Matrix product of activations with constant weights, requantized. */
#include "kernels.h"

/* Rows of high and low bytes of u16 activations: row 2t holds the high ones of token t. */
static void split_planes(const Run *r, const u16 *x, int inputs, size_t stride) {
    int t0, t1, c0, c1;
    share_elements(r, inputs, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++) {
        const u16 *row = x + (size_t)t * (size_t)inputs;
        u8 *high = r->planes + (size_t)(2 * t) * stride, *low = high + stride;
        for (int c = c0; c < c1; c++) {
            high[c] = (u8)(row[c] >> 8);
            low[c] = (u8)row[c];
        }
    }
}

/* Sums of one token's outputs [c, c + n) into s32, from one row of sums or from two planes. */
INLINE void correct(const Linear *l, const int wide, const s32 *sum, int c, int n, s32 *acc) {
    const s64 *correction = l->correction + c;
    if (!wide && l->acc_shift == 0) {
        /* the exact result is in s32, so wrapping sums give it */
        for (int i = 0; i < n; i++) acc[i] = (s32)((u32)sum[i] + (u32)correction[i]);
        return;
    }
    const s32 *low = sum + TILE_BLOCKS * 16;
    for (int i = 0; i < n; i++) {
        s64 exact = wide ? (s64)sum[i] * 256 + low[i] : sum[i];
        acc[i] = (s32)shift_right_round(exact + correction[i], l->acc_shift);
    }
}

/* y[t] for t in [first, tokens): outputs are shared out among the threads. */
INLINE void linear_kind(const Run *r, const Linear *l, const void *x, const int wide, void *y,
                        const int bits, int first) {
    size_t stride = (size_t)l->inputs;
    const u8 *rows = x;
    int planes = 1;
    if (wide) {
        stride = (stride + 3) / 4 * 4;
        split_planes(r, x, l->inputs, stride);
        barrier(r);
        rows = r->planes;
        planes = 2;
    }
    int begin, end;
    share(r, (l->outputs + 15) / 16, 1, &begin, &end);
    int step = TILE_ROWS / planes;
    for (int block = begin; block < end; block += TILE_BLOCKS) {
        int blocks = end - block < TILE_BLOCKS ? end - block : TILE_BLOCKS;
        int c = block * 16, n = l->outputs - c < blocks * 16 ? l->outputs - c : blocks * 16;
        for (int t = first; t < r->tokens; t += step) {
            int count = r->tokens - t < step ? r->tokens - t : step;
            s32 sums[TILE_ROWS * TILE_BLOCKS * 16], acc[TILE_BLOCKS * 16];
            l->dot(count * planes, blocks, rows + (size_t)(t * planes) * stride, stride, &l->weight,
                   block, sums);
            for (int i = 0; i < count; i++) {
                correct(l, wide, sums + i * planes * TILE_BLOCKS * 16, c, n, acc);
                u8 *out = (u8 *)y + ((size_t)(t + i - first) * (size_t)l->outputs + (size_t)c) * (size_t)(bits / 8);
                requant_row(&l->requant, acc, c, n, out, bits);
            }
        }
    }
    barrier(r);
}

void linear_u8_u8(Run *r, const Linear *l, const void *x, void *y) {
    linear_kind(r, l, x, 0, y, 8, 0);
}
void linear_u8_u16(Run *r, const Linear *l, const void *x, void *y) {
    linear_kind(r, l, x, 0, y, 16, 0);
}
void linear_u16_u8(Run *r, const Linear *l, const void *x, void *y) {
    linear_kind(r, l, x, 1, y, 8, 0);
}
void linear_u16_u16(Run *r, const Linear *l, const void *x, void *y) {
    linear_kind(r, l, x, 1, y, 16, 0);
}
void linear_u8_s32(Run *r, const Linear *l, const void *x, void *y) {
    linear_kind(r, l, x, 0, y, 32, r->first_row);
}
void linear_u16_s32(Run *r, const Linear *l, const void *x, void *y) {
    linear_kind(r, l, x, 1, y, 32, r->first_row);
}
