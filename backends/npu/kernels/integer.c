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

u64 divide(u64 x, u64 y) { return long_division(x, y).quotient; }

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
