/* System calls of Linux on Hexagon: number in r6, arguments in r0 to r5, result in r0. Errors are negative. */
#ifndef SYSTEM_H
#define SYSTEM_H

#include "hexagon.h"

enum {
    SYS_OPENAT = 56, SYS_LLSEEK = 62, SYS_READ = 63, SYS_WRITE = 64, SYS_EXIT_GROUP = 94, SYS_MMAP = 222,
};

INLINE s32 system_call(s32 number, s32 a, s32 b, s32 c, s32 d, s32 e, s32 f) {
    register s32 r6 __asm__("r6") = number;
    register s32 r0 __asm__("r0") = a;
    register s32 r1 __asm__("r1") = b;
    register s32 r2 __asm__("r2") = c;
    register s32 r3 __asm__("r3") = d;
    register s32 r4 __asm__("r4") = e;
    register s32 r5 __asm__("r5") = f;
    __asm__ volatile("trap0(#1)"
                     : "+r"(r0)
                     : "r"(r6), "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5)
                     : "memory");
    return r0;
}

/* Results of SYS_MMAP that are errors: the last page of addresses. */
INLINE int failed(s32 address) { return (u32)address > (u32)-4096; }

/* Packets executed so far: control register c20, which only QEMU has; the assembler does not know it. */
INLINE u32 packets(void) {
    u32 count;
    __asm__ volatile(".word 0x6a14c000\n\t%0 = r0" : "=r"(count) : : "r0", "memory");
    return count;
}

#endif
