/* Softmax as mqc.numerics.arithmetic defines it: by differences to the largest score, and a table of 2^-x. */
#ifndef MQC_SOFTMAX_H
#define MQC_SOFTMAX_H

#include "prelude.h"

typedef struct {
    s32 multiplier, left, right;
} SoftmaxScale;

typedef struct {
    u64 reciprocal;
    int shift;
} SoftmaxTotal;

INLINE s32 exponential(SoftmaxScale s, const s32 *exp2, s32 difference) {
    s32 below = requantize(difference, s.multiplier, s.left, s.right);
    u32 u = below > 65535 ? 65535 : (u32)below;
    return exp2[u & 2047] >> (u >> 11);
}

/* Scores become exponentials relative to the largest; exp2: 2^(-i / 2048) for i < 2048, 30 fraction bits.
 * `sink` is one more score, or NULL. */
INLINE SoftmaxTotal exponentials(SoftmaxScale s, const s32 *exp2, s32 *score, int count, const s32 *sink) {
    s32 largest = sink ? *sink : INT32_MIN;
    for (int i = 0; i < count; i++) largest = score[i] > largest ? score[i] : largest;
    u64 total = sink ? (u64)exponential(s, exp2, largest - *sink) : 0;
    for (int i = 0; i < count; i++) {
        score[i] = exponential(s, exp2, largest - score[i]);
        total += (u64)score[i];
    }
    int k = 33 - __builtin_clzll(total);
    if (k < 0) k = 0;
    return (SoftmaxTotal){((u64)1 << 61) / (total >> k), 46 + k};
}

/* Differences that are in steps of the table of powers already. */
#define SOFTMAX_STEPS ((SoftmaxScale){1 << 30, 1, 0})

/* The probability of an exponential, 15 fraction bits. */
INLINE s32 probability(SoftmaxTotal t, s32 exponential) {
    return (s32)(((u64)exponential * t.reciprocal + ((u64)1 << (t.shift - 1))) >> t.shift);
}

#endif
