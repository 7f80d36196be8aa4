/* Rows of u8 times packed weights with AVX-512 VNNI: one instruction adds 4 products per lane. */
#ifndef MQC_DOT_AVX512_H
#define MQC_DOT_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "dot.h"

INLINE __m512i load_block(const u8 *p, int bits) {
    if (bits == 8) return _mm512_loadu_si512(p);
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    __m256i low = _mm256_and_si256(v, _mm256_set1_epi8(15));
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
    __m512i nibbles = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    __m512i eight = _mm512_set1_epi8(8);
    return _mm512_sub_epi8(_mm512_xor_si512(nibbles, eight), eight);
}

INLINE void dot_fixed(const int rows, const int blocks, const int bits, const int grouped,
                      const u8 *x, size_t stride, const Packed *w, int block, s32 *acc) {
    __m512i sum[TILE_ROWS][TILE_BLOCKS], total[TILE_ROWS][TILE_BLOCKS];
    const u8 *p = w->data + (size_t)block * w->block_bytes;
    const int step = bits * 8;
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++)
            sum[r][b] = total[r][b] = _mm512_setzero_si512();
    int span = grouped ? w->group4 : w->groups4;
    for (int g = 0, k = 0; k < w->groups4; g++) {
        for (int end = k + span; k < end; k++) {
            __m512i weight[TILE_BLOCKS];
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++)
                weight[b] = load_block(p + (size_t)b * w->block_bytes + (size_t)k * step, bits);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                s32 four;
                memcpy(&four, x + (size_t)r * stride + (size_t)k * 4, 4);
                __m512i value = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int b = 0; b < blocks; b++)
                    sum[r][b] = _mm512_dpbusd_epi32(sum[r][b], value, weight[b]);
            }
        }
        if (!grouped) break;
        for (int b = 0; b < blocks; b++) {
            const u8 *f = w->factor + (size_t)(block + b) * w->factor_bytes + (size_t)g * 16;
            __m512i factor = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)f));
            for (int r = 0; r < rows; r++) {
                total[r][b] = _mm512_add_epi32(total[r][b], _mm512_mullo_epi32(sum[r][b], factor));
                sum[r][b] = _mm512_setzero_si512();
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++)
            _mm512_storeu_si512(acc + (r * TILE_BLOCKS + b) * 16, grouped ? total[r][b] : sum[r][b]);
}

#define DOT_CASE(R, B) \
    case (R) * 8 + (B): dot_fixed(R, B, bits, grouped, x, stride, w, block, acc); break;

INLINE void dot_tile(int rows, int blocks, const int bits, const int grouped, const u8 *x,
                     size_t stride, const Packed *w, int block, s32 *acc) {
    switch (rows * 8 + blocks) {
        DOT_CASE(1, 1) DOT_CASE(1, 2) DOT_CASE(1, 3) DOT_CASE(1, 4)
        DOT_CASE(2, 1) DOT_CASE(2, 2) DOT_CASE(2, 3) DOT_CASE(2, 4)
        DOT_CASE(3, 1) DOT_CASE(3, 2) DOT_CASE(3, 3) DOT_CASE(3, 4)
        DOT_CASE(4, 1) DOT_CASE(4, 2) DOT_CASE(4, 3) DOT_CASE(4, 4)
    }
}

#endif
