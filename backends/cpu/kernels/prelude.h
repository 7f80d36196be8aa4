/* Types and integer helpers. No floating point anywhere in this program. */
#ifndef MQC_PRELUDE_H
#define MQC_PRELUDE_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef uint32_t u32;
typedef int64_t s64;
typedef uint64_t u64;

#define INLINE static inline __attribute__((always_inline))
/* Of functions that other files call. Where an instruction set is one unit (runtime/unit.c) they are static, so that
 * several sets may stand in one library, and those that its program does not call are left out. */
#ifdef MQC_UNIT
#define KERNEL static __attribute__((unused))
#else
#define KERNEL extern
#endif
#define CHUNK 128 /* most tokens in one call */

/* What one thread knows while the program runs. */
typedef struct {
    int tid, threads;
    int tokens;    /* of this call */
    int position;  /* of the first of them */
    int first_row; /* first token whose logits are wanted */
    const s32 *ids;
    s32 *logits;
    const void *const *constants; /* weights and tables derived from them */
    u8 *arena;       /* values between ops */
    u8 *planes;      /* u16 activations as rows of high and low bytes */
    u8 *scores;      /* of this thread: scratch of attention and of experts */
    u8 **cache;      /* of each attention: keys, key sums, values; of each convolution: rows; then states */
    void *barrier;
} Run;

INLINE s32 saturate32(s64 x) {
    return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : (s32)x;
}

/* floor(x / 2^s + 1/2), s >= 0 */
INLINE s64 shift_right_round(s64 x, int s) { return s > 0 ? (x + ((s64)1 << (s - 1))) >> s : x; }

/* x * m * 2^-31 * 2^-s, rounded twice as the oracle does; left = max(-s, 0), right = max(s, 0) */
INLINE s32 requantize(s32 x, s32 m, int left, int right) {
    s64 wide = saturate32((s64)((u64)(s64)x << left));
    s64 t = saturate32((wide * m + ((s64)1 << 30)) >> 31);
    return (s32)shift_right_round(t, right);
}

INLINE s32 clamp(s64 x, s32 low, s32 high) { return x < low ? low : x > high ? high : (s32)x; }

/* Part `tid` of `count` items, in multiples of `grain`. */
INLINE void share(const Run *r, int count, int grain, int *begin, int *end) {
    int units = (count + grain - 1) / grain;
    *begin = (int)((s64)units * r->tid / r->threads) * grain;
    *end = (int)((s64)units * (r->tid + 1) / r->threads) * grain;
    if (*end > count) *end = count;
}

/* Elementwise work on [tokens, channels]: tokens are shared out, or the channels of a single one. */
INLINE void share_elements(const Run *r, int channels, int *t0, int *t1, int *c0, int *c1) {
    *t0 = 0, *t1 = r->tokens, *c0 = 0, *c1 = channels;
    if (r->tokens > 1)
        share(r, r->tokens, 1, t0, t1);
    else
        share(r, channels, 64, c0, c1);
}

INLINE s32 load(const void *x, int bits, size_t i) {
    return bits == 8 ? ((const u8 *)x)[i] : ((const u16 *)x)[i];
}

INLINE void store(void *out, int bits, int i, s32 value) {
    if (bits == 8)
        ((u8 *)out)[i] = (u8)value;
    else if (bits == 16)
        ((u16 *)out)[i] = (u16)value;
    else
        ((s32 *)out)[i] = value;
}

#endif
