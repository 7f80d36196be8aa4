/* Rows of u8 times packed weights with AVX2. */
#ifndef MQC_DOT_AVX2_H
#define MQC_DOT_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "dot.h"

/* 16 weights (4 outputs of 4 inputs) as s16. */
INLINE __m256i load_quarter(const u8 *p, int quarter, int bits) {
    if (bits == 8)
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + quarter * 16)));
    __m128i v = _mm_loadu_si128((const __m128i *)(p + (quarter & 1) * 16));
    if (quarter >= 2) v = _mm_srli_epi16(v, 4);
    __m128i eight = _mm_set1_epi8(8);
    v = _mm_and_si128(v, _mm_set1_epi8(15));
    return _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_xor_si128(v, eight), eight));
}

/* u8 times s8 sums of four would saturate maddubs, so both are widened to s16 first. */
INLINE void dot_rows(const int rows, int blocks, const int bits, const int grouped, const u8 *x,
                     size_t stride, const Packed *w, int block, s32 *acc) {
    const int step = bits * 8;
    int span = grouped ? w->group4 : w->groups4;
    for (int b = 0; b < blocks; b++) {
        const u8 *p = w->data + (size_t)(block + b) * w->block_bytes;
        s32 *out = acc + b * 16;
        for (int r = 0; r < rows; r++) memset(out + r * TILE_BLOCKS * 16, 0, 64);
        for (int g = 0, k0 = 0; k0 < w->groups4; g++, k0 += span) {
            __m256i sum[TILE_ROWS][4];
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < 4; i++) sum[r][i] = _mm256_setzero_si256();
            for (int k = k0; k < k0 + span; k++) {
                __m256i weight[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) weight[i] = load_quarter(p + (size_t)k * step, i, bits);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    s32 four;
                    memcpy(&four, x + (size_t)r * stride + (size_t)k * 4, 4);
                    __m256i value = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++)
                        sum[r][i] = _mm256_add_epi32(sum[r][i], _mm256_madd_epi16(value, weight[i]));
                }
            }
            const u8 *f = grouped ? w->factor + (size_t)(block + b) * w->factor_bytes + (size_t)g * 16 : 0;
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < 4; i++) {
                    s32 pairs[8];
                    _mm256_storeu_si256((__m256i *)pairs, sum[r][i]);
                    for (int j = 0; j < 4; j++)
                        out[r * TILE_BLOCKS * 16 + i * 4 + j] +=
                            (pairs[2 * j] + pairs[2 * j + 1]) * (grouped ? f[i * 4 + j] : 1);
                }
        }
    }
}

INLINE void dot_tile(int rows, int blocks, const int bits, const int grouped, const u8 *x,
                     size_t stride, const Packed *w, int block, s32 *acc) {
    switch (rows) {
        case 1: dot_rows(1, blocks, bits, grouped, x, stride, w, block, acc); break;
        case 2: dot_rows(2, blocks, bits, grouped, x, stride, w, block, acc); break;
        case 3: dot_rows(3, blocks, bits, grouped, x, stride, w, block, acc); break;
        case 4: dot_rows(4, blocks, bits, grouped, x, stride, w, block, acc); break;
    }
}

#endif
