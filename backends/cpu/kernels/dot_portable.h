/* Rows of u8 times packed weights in plain C. */
#ifndef MQC_DOT_PORTABLE_H
#define MQC_DOT_PORTABLE_H

#include <string.h>

#include "dot.h"

INLINE s32 weight_at(const u8 *p, int i, int bits) {
    if (bits == 8) return (s8)p[i];
    int nibble = i < 32 ? p[i] & 15 : p[i - 32] >> 4;
    return (nibble ^ 8) - 8;
}

INLINE void dot_tile(int rows, int blocks, const int bits, const int grouped, const u8 *x,
                     size_t stride, const Packed *w, int block, s32 *acc) {
    const int step = bits * 8;
    int span = grouped ? w->group4 : w->groups4;
    for (int b = 0; b < blocks; b++) {
        const u8 *p = w->data + (size_t)(block + b) * w->block_bytes;
        for (int r = 0; r < rows; r++) {
            s32 *out = acc + (r * TILE_BLOCKS + b) * 16;
            memset(out, 0, 64);
            for (int g = 0, k0 = 0; k0 < w->groups4; g++, k0 += span) {
                s32 sum[16] = {0};
                for (int k = k0; k < k0 + span; k++)
                    for (int j = 0; j < 16; j++)
                        for (int i = 0; i < 4; i++)
                            sum[j] += x[(size_t)r * stride + (size_t)k * 4 + (size_t)i] *
                                      weight_at(p + (size_t)k * step, j * 4 + i, bits);
                const u8 *f = grouped ? w->factor + (size_t)(block + b) * w->factor_bytes + (size_t)g * 16 : 0;
                for (int j = 0; j < 16; j++) out[j] += sum[j] * (grouped ? f[j] : 1);
            }
        }
    }
}

#endif
