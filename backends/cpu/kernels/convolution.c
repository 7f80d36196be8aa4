/* Causal convolution of each channel by itself. Rows of earlier tokens stand in the cache, one behind the other. */

#include <string.h>

#include "kernels.h"

#define COLUMNS 64 /* computed together */

INLINE void convolution_kind(const Run *r, const Convolution *p, const void *x, const int xbits, void *y,
                             const int bits) {
    int t0, t1, c0, c1;
    size_t row = (size_t)p->channels * (size_t)(xbits / 8);
    u8 *cache = r->cache[p->cache];
    share_elements(r, p->channels, &t0, &t1, &c0, &c1);
    for (int t = t0; t < t1; t++) {
        for (int c = c0; c < c1; c += COLUMNS) {
            s64 sum[COLUMNS];
            s32 acc[COLUMNS];
            int n = c1 - c < COLUMNS ? c1 - c : COLUMNS;
            for (int i = 0; i < n; i++) sum[i] = p->bias[c + i];
            for (int tap = 0; tap < p->taps; tap++) {
                int token = t - (p->taps - 1 - tap); /* of this call; negative: before it */
                if (r->position + token < 0) continue;
                const void *rows = token < 0 ? (const void *)cache : x;
                size_t base = (size_t)(token < 0 ? r->position + token : token) * (size_t)p->channels + (size_t)c;
                const s16 *weight = p->weight + (size_t)tap * (size_t)p->channels + (size_t)c;
                for (int i = 0; i < n; i++) sum[i] += (s64)(load(rows, xbits, base + (size_t)i) - p->x_zero) * weight[i];
            }
            for (int i = 0; i < n; i++) acc[i] = (s32)shift_right_round(sum[i], p->acc_shift);
            size_t out = ((size_t)t * (size_t)p->channels + (size_t)c) * (size_t)(bits / 8);
            requant_row(&p->requant, acc, c, n, (u8 *)y + out, bits);
        }
        /* No thread reads these rows in this call. */
        size_t begin = (size_t)c0 * (size_t)(xbits / 8), bytes = (size_t)(c1 - c0) * (size_t)(xbits / 8);
        memcpy(cache + (size_t)(r->position + t) * row + begin, (const u8 *)x + (size_t)t * row + begin, bytes);
    }
    barrier(r);
}

#define CONVOLUTION(xbits, bits)                                                                              \
    void convolution_u##xbits##_u##bits(Run *r, const Convolution *p, const void *x, void *y) {        \
        convolution_kind(r, p, x, xbits, y, bits);                                                            \
    }
CONVOLUTION(8, 8) CONVOLUTION(8, 16) CONVOLUTION(16, 8) CONVOLUTION(16, 16)
