/* Norms: x / ||x|| with 30 fraction bits, then requantized with the gain. */
#include "kernels.h"

/* floor(sqrt(x)): Newton's iteration from above, which falls until it is exact. */
static u64 integer_sqrt(u64 x) {
    if (x < 2) return x;
    u64 s = (u64)1 << ((65 - __builtin_clzll(x)) / 2);
    if (s > UINT32_MAX) s = UINT32_MAX;
    for (;;) {
        u64 next = (s + x / s) / 2;
        if (next >= s) break;
        s = next;
    }
    while (s * s > x) s--;
    return s;
}

/* 1 / sqrt(sum) = r * 2^(h - 62) */
static void inverse_norm(u64 sum, s64 *r, int *h) {
    int shift = __builtin_clzll(sum) & ~1;
    *r = (s64)(((u64)1 << 62) / integer_sqrt(sum << shift));
    *h = shift / 2;
}

INLINE void norm_kind(const Run *r, const Norm *p, const void *x, const int xbits, void *y,
                      const int bits) {
    int size = p->channels / p->groups, begin, end;
    share(r, r->tokens * p->groups, 1, &begin, &end);
    for (int item = begin; item < end; item++) {
        size_t base = (size_t)item * (size_t)size;
        s64 mean = (s64)p->x_zero, one = 1;
        if (p->centered) {
            s64 sum = 0;
            for (int i = 0; i < size; i++) sum += load(x, xbits, base + (size_t)i);
            one = 64;
            mean = (2 * one * sum + size) / (2 * size); /* no operand is negative */
        }
        u64 square = p->epsilon;
        for (int i = 0; i < size; i++) {
            s64 d = load(x, xbits, base + (size_t)i) * one - mean;
            square += (u64)(d * d);
        }
        s64 factor;
        int h, c0 = item % p->groups * size;
        inverse_norm(square, &factor, &h);
        for (int c = 0; c < size; c += 64) {
            s32 acc[64];
            int n = size - c < 64 ? size - c : 64;
            for (int i = 0; i < n; i++) {
                s64 d = load(x, xbits, base + (size_t)(c + i)) * one - mean;
                acc[i] = (s32)shift_right_round(d * factor, 32 - h);
            }
            if (p->bias)
                for (int i = 0, at = c0 + c; i < n; i++, at++)
                    acc[i] = (s32)shift_right_round(acc[i], p->bias_shift[at]) + p->bias[at];
            requant_row(&p->requant, acc, c0 + c, n, (u8 *)y + (base + (size_t)c) * (size_t)(bits / 8), bits);
        }
    }
    barrier(r);
}

#define NORM(xbits, bits)                                                                        \
    void norm_u##xbits##_u##bits(Run *r, const Norm *p, const void *x, void *y) {                \
        norm_kind(r, p, x, xbits, y, bits);                                                      \
    }
NORM(8, 8) NORM(8, 16) NORM(16, 8) NORM(16, 16)
