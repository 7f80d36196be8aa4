/* Rescaling with NEON, whose saturating and rounding instructions are the steps of `requantize`. */
#ifndef MQC_REQUANT_NEON_H
#define MQC_REQUANT_NEON_H

#include <arm_neon.h>

#include "requant.h"

INLINE int32x4_t requant4(Requant q, const s32 *acc, int c) {
    int32x4_t t = vld1q_s32(acc);
    if (q.any_left) t = vqshlq_s32(t, vld1q_s32(q.left + c));
    t = vqrdmulhq_s32(t, vld1q_s32(q.multiplier + c)); /* saturate32((2 * t * m + 2^31) >> 32) */
    t = vrshlq_s32(t, vnegq_s32(vld1q_s32(q.right + c)));
    t = vqaddq_s32(t, vdupq_n_s32(q.zero)); /* limits are s32, so saturating changes no result */
    return vminq_s32(vmaxq_s32(t, vdupq_n_s32(q.low)), vdupq_n_s32(q.high));
}

INLINE void requant_fixed(const Requant *q, const s32 *acc, int c, int n, void *out, const int bits) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        int32x4_t a = requant4(*q, acc + i, c + i), b = requant4(*q, acc + i + 4, c + i + 4);
        uint16x8_t narrow = vreinterpretq_u16_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
        if (bits == 8) {
            vst1_u8((u8 *)out + i, vmovn_u16(narrow));
        } else if (bits == 16) {
            vst1q_u16((u16 *)out + i, narrow);
        } else {
            vst1q_s32((s32 *)out + i, a);
            vst1q_s32((s32 *)out + i + 4, b);
        }
    }
    if (i < n) requant_scalar(q, acc + i, c + i, n - i, (u8 *)out + i * (bits / 8), bits);
}

#endif
