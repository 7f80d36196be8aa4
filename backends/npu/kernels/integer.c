/* Integer division, and what clang calls by itself: there is no compiler runtime for this target. */
#include "hexagon.h"

typedef struct {
    u64 quotient, rest;
} Division;

/* Long division, one bit at a time, from the first bit of x on. */
static Division long_division(u64 x, u64 y) {
    Division d = {0, 0};
    if (!x) return d;
    for (int i = 63 - __builtin_clzll(x); i >= 0; i--) {
        u64 carry = d.rest >> 63;
        d.rest = d.rest << 1 | (x >> i & 1);
        d.quotient <<= 1;
        if (carry || d.rest >= y) {
            d.rest -= y;
            d.quotient |= 1;
        }
    }
    return d;
}

/* Newton's iteration from below, by a line that is 1/17 off at most: 3 steps leave less than 1 and what
 * their own rounding takes. The rest says which integer it is. */
u32 reciprocal(u32 d) {
    u32 r = 3031741620u - (u32)((u64)d * 2021161081u >> 32); /* 2^30 * 48/17 - d * 8/17 */
    for (int i = 0; i < 3; i++) {
        u32 product = (u32)((u64)d * r >> 31); /* 31 fraction bits */
        r = (u32)((u64)r * -product >> 31);    /* r * (2 - product) */
    }
    s64 rest = ((s64)1 << 62) - (s64)((u64)d * r);
    for (; rest < 0; rest += d) r--;
    for (; rest >= d; rest -= d) r++;
    return r;
}

/* Newton's iteration for 1 / sqrt(x), by a line that is 1/11 off at most; after 3 steps, 2^-23.
 * The rest of the root that this gives corrects it. */
u32 root(u64 x) {
    u32 top = (u32)(x >> 32);
    u32 y = 2297807759u - (u32)((u64)top * 1313186223u >> 32); /* 30 fraction bits: 2.14 - 1.223 * x */
    for (int i = 0; i < 3; i++) {
        u32 square = (u32)((u64)y * y >> 31);               /* 29 fraction bits */
        u32 product = (u32)((u64)top * square >> 31);       /* 30 fraction bits */
        y = (u32)((u64)y * ((3u << 30) - product) >> 31);   /* y * (3 - product) / 2 */
    }
    u32 q = (u32)((u64)top * y >> 30);
    q += (u32)(((s64)(x - (u64)q * q) >> 16) * y >> 47);
    s64 rest = (s64)(x - (u64)q * q);
    for (; rest < 0; rest += 2 * (s64)q + 1) q--;
    for (; rest > 2 * (s64)q; rest -= 2 * (s64)q - 1) q++;
    return q;
}

static u32 magnitude(s32 x) { return x < 0 ? -(u32)x : (u32)x; }

u64 __hexagon_udivdi3(u64 x, u64 y) { return long_division(x, y).quotient; }
u64 __hexagon_umoddi3(u64 x, u64 y) { return long_division(x, y).rest; }
u32 __hexagon_udivsi3(u32 x, u32 y) { return (u32)long_division(x, y).quotient; }
u32 __hexagon_umodsi3(u32 x, u32 y) { return (u32)long_division(x, y).rest; }
s32 __hexagon_divsi3(s32 x, s32 y) {
    u32 q = (u32)long_division(magnitude(x), magnitude(y)).quotient;
    return (s32)((x < 0) != (y < 0) ? -q : q);
}
s32 __hexagon_modsi3(s32 x, s32 y) {
    u32 r = (u32)long_division(magnitude(x), magnitude(y)).rest;
    return (s32)(x < 0 ? -r : r);
}

void *memcpy(void *restrict to, const void *restrict from, u32 bytes) {
    u8 *t = to;
    const u8 *f = from;
    while (bytes--) *t++ = *f++;
    return to;
}

void *memset(void *to, int value, u32 bytes) {
    u8 *t = to;
    while (bytes--) *t++ = (u8)value;
    return to;
}
