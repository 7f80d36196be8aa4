/* The one matrix kernel: rows of u8 times packed s8 or s4 weights, summed in s32.
 *
 * Weights are blocks of 16 outputs: for each group of 4 inputs 64 bytes (s8) or 32 bytes (s4), see
 * mqc/numerics/layouts.py. Inputs past the end of a row meet zero weights; they are read, so buffers
 * have slack behind them.
 */
#ifndef MQC_DOT_H
#define MQC_DOT_H

#include "prelude.h"

typedef struct {
    const u8 *data;
    size_t block_bytes; /* from one block of 16 outputs to the next */
    int groups4;        /* groups of 4 inputs */
    const u8 *factor;    /* [blocks][groups][16] or NULL: integer scale of each group */
    int group4;          /* groups of 4 inputs per scale */
    size_t factor_bytes; /* from the factors of one block to those of the next */
    const s32 *sums;     /* [blocks][16]: what an output's weights, times their scales, add up to, wrapping;
                            or NULL: kernels that need them add them up, of s8 without scales */
} Packed;

#define TILE_ROWS 4
#define TILE_BLOCKS 4

/* acc[r][b * 16 + j] for r < rows, b < blocks; row length TILE_BLOCKS * 16. At most TILE_ROWS rows,
 * `stride` bytes apart, and TILE_BLOCKS blocks from `block` on. */
typedef void Dot(int rows, int blocks, const u8 *x, size_t stride, const Packed *w, int block, s32 *acc);
KERNEL Dot dot_s8, dot_s4, dot_s4_grouped;

/* An input that adds nothing to what `sums` and the other inputs make of an output. */
KERNEL u8 dot_nothing(void);

#endif
