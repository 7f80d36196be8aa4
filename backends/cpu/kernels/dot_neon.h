/* Rows of u8 times packed weights with NEON: with i8mm, with dotprod alone, or with neither. */
#ifndef MQC_DOT_NEON_H
#define MQC_DOT_NEON_H

#include <arm_neon.h>
#include <string.h>

#include "dot.h"

/* Where u8 cannot meet s8, 128 is taken from each input, and what is then missing is added to the sums. */
#if defined(__ARM_FEATURE_MATMUL_INT8)
enum { SUBTRACTED = 0 };
typedef uint8x16_t Inputs;
INLINE Inputs inputs(uint8x16_t x) { return x; }
#else
enum { SUBTRACTED = 128 };
typedef int8x16_t Inputs;
INLINE Inputs inputs(uint8x16_t x) { return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(128))); }
#endif

#define DOT_NOTHING SUBTRACTED

/* Sum: of 4 outputs, `whole` as s32. ROWS_AT_ONCE: rows whose sums stay in registers. */
#if defined(__ARM_FEATURE_DOTPROD)
enum { ROWS_AT_ONCE = 4 };
typedef int32x4_t Sum;
INLINE int32x4_t whole(Sum sum) { return sum; }
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define DOT_LANE vsudotq_laneq_s32
#else
#define DOT_LANE vdotq_laneq_s32
#endif
#else
enum { ROWS_AT_ONCE = 2 };
typedef int32x4x2_t Sum; /* of each output two: products are s16, which two of them may not fit */
INLINE int32x4_t whole(Sum sum) { return vpaddq_s32(sum.val[0], sum.val[1]); }
INLINE Sum add_pairs(Sum sum, int8x16_t weights, int8x8_t four) {
    sum.val[0] = vpadalq_s16(sum.val[0], vmull_s8(vget_low_s8(weights), four));
    sum.val[1] = vpadalq_s16(sum.val[1], vmull_high_s8(weights, vcombine_s8(four, four)));
    return sum;
}
#define DOT_LANE(sum, weights, x, lane) \
    add_pairs(sum, weights, vreinterpret_s8_s32(vdup_laneq_s32(vreinterpretq_s32_s8(x), lane)))
#endif

/* Add products of 4 outputs' weights with inputs 4 * lane to 4 * lane + 3. The instruction holds the lane. */
INLINE Sum dot4(Sum sum, int8x16_t weights, Inputs x, int lane) {
    switch (lane) {
        case 0: return DOT_LANE(sum, weights, x, 0);
        case 1: return DOT_LANE(sum, weights, x, 1);
        case 2: return DOT_LANE(sum, weights, x, 2);
        default: return DOT_LANE(sum, weights, x, 3);
    }
}

/* A group of 4 inputs: w[i] holds the weights of outputs 4i to 4i + 3. Those of 4 bits stay in the upper half of
 * their bytes, 16 times as large: one shift of a sum costs less than shifting each. 65536 inputs still fit in s32. */
enum { LONGEST_S4 = 16384 };
INLINE void load_group(const u8 *p, const int bits, int8x16_t w[4]) {
    if (bits == 8) {
        for (int i = 0; i < 4; i++) w[i] = vld1q_s8((const s8 *)p + 16 * i);
        return;
    }
    for (int i = 0; i < 2; i++) {
        int8x16_t both = vld1q_s8((const s8 *)p + 16 * i);
        w[i] = vshlq_n_s8(both, 4);
        w[i + 2] = vandq_s8(both, vdupq_n_s8(-16));
    }
}

/* Adds groups k to end of a block at p to the rows' sums, four groups at a time; returns the first that is left. */
INLINE int by_lanes(const int rows, const int bits, const u8 *x, size_t stride, const u8 *p, int k, int end,
                    Sum sum[][4]) {
    int8x16_t w[4];
    Inputs row[ROWS_AT_ONCE];
    for (; k + 4 <= end; k += 4) {
        for (int r = 0; r < rows; r++) row[r] = inputs(vld1q_u8(x + (size_t)r * stride + (size_t)k * 4));
#pragma GCC unroll 4
        for (int lane = 0; lane < 4; lane++) {
            load_group(p + (size_t)(k + lane) * (size_t)bits * 8, bits, w);
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < 4; i++) sum[r][i] = dot4(sum[r][i], w[i], row[r], lane);
        }
    }
    return k;
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* The same of four rows whose sums are 0: usmmla multiplies 8 inputs of two rows and of two outputs, twice what
 * dot4 does, for a zip of weights. */
INLINE int by_squares(const int bits, const u8 *x, size_t stride, const u8 *p, int k, int end, Sum sum[][4]) {
    int32x4_t square[2][8]; /* [pairs of rows][pairs of outputs] */
    for (int i = 0; i < 8; i++) square[0][i] = square[1][i] = vdupq_n_s32(0);
    for (; k + 4 <= end; k += 4) {
        uint64x2_t row[4];
        for (int r = 0; r < 4; r++)
            row[r] = vreinterpretq_u64_u8(vld1q_u8(x + (size_t)r * stride + (size_t)k * 4));
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            int8x16_t w[2][4], zipped[8];
            uint8x16_t pair[2];
            for (int j = 0; j < 2; j++) {
                load_group(p + (size_t)(k + 2 * half + j) * (size_t)bits * 8, bits, w[j]);
                uint64x2_t a = row[2 * j], b = row[2 * j + 1];
                pair[j] = vreinterpretq_u8_u64(half ? vzip2q_u64(a, b) : vzip1q_u64(a, b));
            }
#pragma GCC unroll 2
            for (int first = 0; first < 8; first += 4) { /* as many as registers hold */
                for (int i = first; i < first + 4; i += 2) {
                    int32x4_t a = vreinterpretq_s32_s8(w[0][i / 2]), b = vreinterpretq_s32_s8(w[1][i / 2]);
                    zipped[i] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
                    zipped[i + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
                }
                for (int j = 0; j < 2; j++)
                    for (int i = first; i < first + 4; i++)
                        square[j][i] = vusmmlaq_s32(square[j][i], pair[j], zipped[i]);
            }
        }
    }
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 4; i++) {
            int64x2_t a = vreinterpretq_s64_s32(square[j][2 * i]), b = vreinterpretq_s64_s32(square[j][2 * i + 1]);
            sum[2 * j][i] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
            sum[2 * j + 1][i] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
        }
    return k;
}
#endif

/* Sums of groups k to end. */
INLINE void dot_span(const int rows, const int bits, const u8 *x, size_t stride, const u8 *p, int k, int end,
                     Sum sum[][4]) {
    memset(sum, 0, (size_t)rows * 4 * sizeof(Sum));
#if defined(__ARM_FEATURE_MATMUL_INT8)
    k = rows == 4 ? by_squares(bits, x, stride, p, k, end, sum) : by_lanes(rows, bits, x, stride, p, k, end, sum);
#else
    k = by_lanes(rows, bits, x, stride, p, k, end, sum);
#endif
    for (; k < end; k++) {
        int8x16_t w[4];
        load_group(p + (size_t)k * (size_t)bits * 8, bits, w);
        for (int r = 0; r < rows; r++) {
            u32 four;
            memcpy(&four, x + (size_t)r * stride + (size_t)k * 4, 4);
            Inputs row = inputs(vreinterpretq_u8_u32(vdupq_n_u32(four)));
            for (int i = 0; i < 4; i++) sum[r][i] = dot4(sum[r][i], w[i], row, 0);
        }
    }
}

/* What a block's sums miss: SUBTRACTED times the sums of its weights. */
INLINE void missing(const Packed *w, int block, int32x4_t sum[4]) {
    for (int i = 0; i < 4; i++) sum[i] = vdupq_n_s32(0);
    if (SUBTRACTED == 0) return;
    const s8 *p = (const s8 *)w->data + (size_t)block * w->block_bytes;
    if (w->sums)
        for (int i = 0; i < 4; i++) sum[i] = vld1q_s32(w->sums + block * 16 + 4 * i);
    else
        for (int k = 0; k < w->groups4; k++)
            for (int i = 0; i < 4; i++)
                sum[i] = vpadalq_s16(sum[i], vpaddlq_s8(vld1q_s8(p + (size_t)k * 64 + 16 * i)));
    for (int i = 0; i < 4; i++) sum[i] = vmulq_n_s32(sum[i], SUBTRACTED);
}

/* total += sum, times the factors (u8) of a block's outputs. */
INLINE void add_sums(const int rows, const int bits, const int grouped, int32x4_t total[][4], Sum sum[][4],
                     const u8 *factor) {
    uint32x4_t f[4];
    if (grouped) {
        uint8x16_t bytes = vld1q_u8(factor);
        uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
        f[0] = vmovl_u16(vget_low_u16(low)), f[1] = vmovl_high_u16(low);
        f[2] = vmovl_u16(vget_low_u16(high)), f[3] = vmovl_high_u16(high);
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) {
            int32x4_t s = bits == 4 ? vshrq_n_s32(whole(sum[r][i]), 4) : whole(sum[r][i]);
            if (grouped) s = vmulq_s32(s, vreinterpretq_s32_u32(f[i]));
            total[r][i] = vaddq_s32(total[r][i], s);
        }
}

INLINE void dot_rows(const int rows, int blocks, const int bits, const int grouped, const u8 *x,
                     size_t stride, const Packed *w, int block, s32 *acc) {
    const int longest = bits == 4 ? LONGEST_S4 : INT32_MAX, span = grouped ? w->group4 : w->groups4;
    for (int b = 0; b < blocks; b++) {
        const u8 *p = w->data + (size_t)(block + b) * w->block_bytes;
        const u8 *factor = grouped ? w->factor + (size_t)(block + b) * w->factor_bytes : 0;
        Sum sum[ROWS_AT_ONCE][4];
        int32x4_t total[ROWS_AT_ONCE][4], rest[4];
        memset(total, 0, sizeof total);
        int k = 0, next = span; /* group of 4 inputs, and the first with other factors */
        do {
            int end = next - k > longest ? k + longest : next;
            dot_span(rows, bits, x, stride, p, k, end, sum);
            add_sums(rows, bits, grouped, total, sum, factor);
            k = end;
            if (grouped && k == next) next += span, factor += 16;
        } while (bits == 4 && k < w->groups4);
        missing(w, block + b, rest);
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++)
                vst1q_s32(acc + (r * TILE_BLOCKS + b) * 16 + 4 * i, vaddq_s32(total[r][i], rest[i]));
    }
}

INLINE void dot_tile(int rows, int blocks, const int bits, const int grouped, const u8 *x,
                     size_t stride, const Packed *w, int block, s32 *acc) {
    for (; rows > 0; rows -= ROWS_AT_ONCE, x += ROWS_AT_ONCE * stride, acc += ROWS_AT_ONCE * TILE_BLOCKS * 16)
        switch (rows < ROWS_AT_ONCE ? rows : ROWS_AT_ONCE) {
            case 1: dot_rows(1, blocks, bits, grouped, x, stride, w, block, acc); break;
            case 2: dot_rows(2, blocks, bits, grouped, x, stride, w, block, acc); break;
#if defined(__ARM_FEATURE_DOTPROD)
            case 3: dot_rows(3, blocks, bits, grouped, x, stride, w, block, acc); break;
            case 4: dot_rows(4, blocks, bits, grouped, x, stride, w, block, acc); break;
#endif
        }
}

#endif
