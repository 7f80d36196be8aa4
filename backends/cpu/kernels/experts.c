/* Products with matrices that have a block for each expert: only chosen experts' blocks are read. */
#include "kernels.h"

#define TILE_OUTPUTS (TILE_BLOCKS * 16)

INLINE int chosen(const Experts *e, const void *gates, int t, int expert) {
    return load(gates, e->gates_bits, (size_t)t * (size_t)e->experts + (size_t)expert) != e->gates_zero;
}

/* The next tokens from *t on that chose an expert, at most `most`; *t moves behind them. */
INLINE int next_tokens(const Run *r, const Experts *e, const void *gates, int expert, int most, int *t, int *found) {
    int count = 0;
    for (; *t < r->tokens && count < most; (*t)++)
        if (chosen(e, gates, *t, expert)) found[count++] = *t;
    return count;
}

/* Inputs [from, from + count) of a token as rows of bytes, of u16 the high ones before the low ones. Inputs
 * that share a group of 4 with them add nothing to sums: their weights are other experts'. */
INLINE void gather(const void *x, const int wide, size_t row, int from, int count, u8 *out, size_t stride) {
    int lead = from % 4;
    u8 nothing = dot_nothing();
    for (int plane = 0; plane <= wide; plane++, out += stride) {
        for (int i = 0; i < lead; i++) out[i] = nothing;
        for (size_t i = (size_t)(lead + count); i < stride; i++) out[i] = nothing;
        if (!wide)
            for (int i = 0; i < count; i++) out[lead + i] = ((const u8 *)x)[row + (size_t)(from + i)];
        else
            for (int i = 0; i < count; i++) {
                u16 v = ((const u16 *)x)[row + (size_t)(from + i)];
                out[lead + i] = (u8)(plane == 0 ? v >> 8 : v);
            }
    }
}

/* The packed columns [from, from + count), from the group of 4 on in which they begin. */
INLINE Packed columns(const Experts *e, int from, int count) {
    Packed w = e->linear.weight;
    int group = from / 4;
    w.data += (size_t)group * (size_t)(e->weight_bits * 8);
    w.groups4 = (from % 4 + count + 3) / 4;
    if (w.factor) w.factor += (size_t)(group / w.group4) * 16;
    return w;
}

/* Sums of tokens that chose an expert, for outputs of `blocks` blocks from `block` on: exact[i][output]. */
INLINE void sums_of(const Run *r, const Experts *e, const void *x, const int wide, const int *tokens, int count,
                    int from, int inputs, const Packed *w, int block, int blocks, s64 exact[][TILE_OUTPUTS]) {
    size_t stride = (size_t)w->groups4 * 4;
    for (int i = 0; i < count; i++)
        gather(x, wide, (size_t)tokens[i] * (size_t)e->linear.inputs, from, inputs,
               r->scores + (size_t)i * (size_t)(wide + 1) * stride, stride);
    s32 sums[TILE_ROWS * TILE_OUTPUTS];
    e->linear.dot(count * (wide + 1), blocks, r->scores, stride, w, block, sums);
    for (int i = 0; i < count; i++) {
        const s32 *row = sums + i * (wide + 1) * TILE_OUTPUTS;
        for (int j = 0; j < blocks * 16; j++) exact[i][j] = wide ? (s64)row[j] * 256 + row[j + TILE_OUTPUTS] : row[j];
    }
}

/* Outputs [c, c + n) of a token. */
INLINE void finish(const Linear *l, const s64 *exact, const s64 *correction, int t, int c, int n, void *y, const int bits) {
    s32 acc[TILE_OUTPUTS];
    for (int j = 0; j < n; j++) acc[j] = (s32)shift_right_round(exact[j] + correction[j], l->acc_shift);
    size_t at = (size_t)t * (size_t)l->outputs + (size_t)c;
    requant_row(&l->requant, acc, c, n, (u8 *)y + at * (size_t)(bits / 8), bits);
}

/* Blocks of outputs. The blocks of 16 of each expert are shared out among the threads. */
INLINE void outputs_of_experts(const Run *r, const Experts *e, const void *x, const int wide, const void *gates,
                               void *y, const int bits) {
    const Linear *l = &e->linear;
    int size = l->outputs / e->experts, most = TILE_ROWS / (wide + 1), tokens[TILE_ROWS];
    Packed w = columns(e, 0, l->inputs);
    s64 exact[TILE_ROWS][TILE_OUTPUTS];
    for (int expert = 0; expert < e->experts; expert++) {
        int first = expert * size, last = first + size, begin, end;
        share(r, (last + 15) / 16 - first / 16, 1, &begin, &end);
        begin += first / 16, end += first / 16;
        int low = begin * 16 > first ? begin * 16 : first, high = end * 16 < last ? end * 16 : last;
        for (int t = 0; t < r->tokens; t++)
            if (!chosen(e, gates, t, expert))
                for (int c = low; c < high; c++) store(y, bits, t * l->outputs + c, l->requant.zero);
        for (int block = begin; block < end; block += TILE_BLOCKS) {
            int blocks = end - block < TILE_BLOCKS ? end - block : TILE_BLOCKS;
            int c = block * 16 > first ? block * 16 : first;
            int stop = (block + blocks) * 16 < last ? (block + blocks) * 16 : last;
            for (int t = 0, count; (count = next_tokens(r, e, gates, expert, most, &t, tokens)) > 0;) {
                sums_of(r, e, x, wide, tokens, count, 0, l->inputs, &w, block, blocks, exact);
                for (int i = 0; i < count; i++)
                    finish(l, exact[i] + (c - block * 16), l->correction + c, tokens[i], c, stop - c, y, bits);
            }
        }
    }
    barrier(r);
}

/* Blocks of inputs, summed over the experts that a token chose. */
INLINE void sums_over_experts(const Run *r, const Experts *e, const void *x, const int wide, const void *gates,
                              void *y, const int bits) {
    const Linear *l = &e->linear;
    int size = l->inputs / e->experts, most = TILE_ROWS / (wide + 1), tokens[TILE_ROWS], begin, end;
    size_t padded = (size_t)(l->outputs + 15) / 16 * 16;
    s64 total[CHUNK][TILE_OUTPUTS], exact[TILE_ROWS][TILE_OUTPUTS];
    share(r, (l->outputs + 15) / 16, 1, &begin, &end);
    for (int block = begin; block < end; block += TILE_BLOCKS) {
        int blocks = end - block < TILE_BLOCKS ? end - block : TILE_BLOCKS, c = block * 16;
        int n = l->outputs - c < blocks * 16 ? l->outputs - c : blocks * 16;
        for (int t = 0; t < r->tokens; t++)
            for (int j = 0; j < n; j++) total[t][j] = 0;
        for (int expert = 0; expert < e->experts; expert++) {
            Packed w = columns(e, expert * size, size);
            w.sums = e->block_sums + (size_t)expert * padded;
            const s64 *correction = e->block_correction + (size_t)expert * padded + (size_t)c;
            for (int t = 0, count; (count = next_tokens(r, e, gates, expert, most, &t, tokens)) > 0;) {
                sums_of(r, e, x, wide, tokens, count, expert * size, size, &w, block, blocks, exact);
                for (int i = 0; i < count; i++)
                    for (int j = 0; j < n; j++) total[tokens[i]][j] += exact[i][j] + correction[j];
            }
        }
        for (int t = 0; t < r->tokens; t++) finish(l, total[t], l->correction + c, t, c, n, y, bits);
    }
    barrier(r);
}

#define EXPERTS(xbits, bits)                                                                          \
    void experts_u##xbits##_u##bits(Run *r, const Experts *e, const void *x, const void *gates, void *y) { \
        if (e->axis == 0)                                                                             \
            outputs_of_experts(r, e, x, xbits == 16, gates, y, bits);                                 \
        else                                                                                          \
            sums_over_experts(r, e, x, xbits == 16, gates, y, bits);                                  \
    }
EXPERTS(8, 8) EXPERTS(8, 16) EXPERTS(16, 8) EXPERTS(16, 16)
