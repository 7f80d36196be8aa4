/* Rescaling of accumulators: the epilogue of every op that makes s32 values. */
#ifndef MQC_REQUANT_H
#define MQC_REQUANT_H

#include "prelude.h"

/* Constants of one requant, per channel, padded to a multiple of 16. */
typedef struct {
    const s32 *multiplier, *left, *right;
    int any_left; /* whether any channel shifts left */
    s32 zero, low, high;
} Requant;

/* out[i] for the n channels from c on, each `bits` wide: acc[i], rescaled and clamped. */
KERNEL void requant_row(const Requant *q, const s32 *acc, int c, int n, void *out, int bits);

/* The same, one channel after another: what vectors leave over. */
INLINE void requant_scalar(const Requant *q, const s32 *acc, int c, int n, void *out, int bits) {
    for (int i = 0; i < n; i++) {
        s64 t = requantize(acc[i], q->multiplier[c + i], q->left[c + i], q->right[c + i]);
        store(out, bits, i, clamp(t + q->zero, q->low, q->high));
    }
}

#endif
