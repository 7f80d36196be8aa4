/* Rescaling with AVX-512: 16 channels at a time. */
#ifndef MQC_REQUANT_AVX512_H
#define MQC_REQUANT_AVX512_H

#include <immintrin.h>

#include "requant.h"

/* Saturating left shift and rounding doubling product of the even (s64) lanes. */
INLINE __m512i product_even(__m512i x, __m512i m, __m512i left, int any_left) {
    const __m512i half = _mm512_set1_epi64((s64)1 << 30);
    if (any_left) {
        __m512i wide = _mm512_srai_epi64(_mm512_slli_epi64(x, 32), 32);
        wide = _mm512_sllv_epi64(wide, _mm512_and_si512(left, _mm512_set1_epi64(63)));
        wide = _mm512_min_epi64(wide, _mm512_set1_epi64(INT32_MAX));
        x = _mm512_max_epi64(wide, _mm512_set1_epi64(INT32_MIN));
    }
    return _mm512_srai_epi64(_mm512_add_epi64(_mm512_mul_epi32(x, m), half), 31);
}

INLINE __m512i requant16(const Requant *q, __m512i acc, int c) {
    __m512i m = _mm512_loadu_si512(q->multiplier + c), left = _mm512_setzero_si512();
    __m512i right = _mm512_loadu_si512(q->right + c);
    if (q->any_left) left = _mm512_loadu_si512(q->left + c);
    __m512i even = product_even(acc, m, left, q->any_left);
    __m512i odd = product_even(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(m, 32),
                               _mm512_srli_epi64(left, 32), q->any_left);
    /* |x * m| < 2^62, so the products are within s32 but for x = m = -2^31, which m excludes */
    __m512i t = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    /* (t + 2^(s-1)) >> s without leaving s32: (t >> s) + bit s-1 of t */
    const __m512i one = _mm512_set1_epi32(1);
    __mmask16 shifted = _mm512_test_epi32_mask(right, right);
    __m512i bit = _mm512_maskz_and_epi32(
        shifted, _mm512_srav_epi32(t, _mm512_sub_epi32(right, one)), one);
    t = _mm512_add_epi32(_mm512_srav_epi32(t, right), bit);
    /* zero point and clamp; t + zero stays in s32 because |zero| < 2^16 is added after a clamp */
    t = _mm512_max_epi32(t, _mm512_set1_epi32(q->low - q->zero));
    t = _mm512_min_epi32(t, _mm512_set1_epi32(q->high - q->zero));
    return _mm512_add_epi32(t, _mm512_set1_epi32(q->zero));
}

INLINE void requant_fixed(const Requant *q, const s32 *acc, int c, int n, void *out, const int bits) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i t = requant16(q, _mm512_loadu_si512(acc + i), c + i);
        if (bits == 8)
            _mm_storeu_si128((__m128i *)((u8 *)out + i), _mm512_cvtepi32_epi8(t));
        else if (bits == 16)
            _mm256_storeu_si256((__m256i *)((u16 *)out + i), _mm512_cvtepi32_epi16(t));
        else
            _mm512_storeu_si512((s32 *)out + i, t);
    }
    if (i < n) requant_scalar(q, acc + i, c + i, n - i, (u8 *)out + i * (bits / 8), bits);
}

#endif
