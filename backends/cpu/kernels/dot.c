/* Chooses the matrix kernel of the instruction set.
 *
 * An instruction set is a header that defines
 *
 *     INLINE void dot_tile(int rows, int blocks, const int bits, const int grouped, const u8 *x,
 *                          size_t stride, const Packed *w, int block, s32 *acc);
 *
 * which is `Dot` for weights of `bits` bits, with or without scales of groups. `bits` and `grouped`
 * are constants wherever it is called. What else must be constant, for sums to stay in registers,
 * it dispatches on itself.
 */
#include "dot.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "dot_avx512.h"
#elif defined(__AVX2__)
#include "dot_avx2.h"
#elif defined(__aarch64__) && !defined(MQC_PORTABLE) /* where NEON needs no option */
#include "dot_neon.h"
#else
#include "dot_portable.h"
#endif

#ifndef DOT_NOTHING
#define DOT_NOTHING 0
#endif
u8 dot_nothing(void) { return DOT_NOTHING; }

#define DOT_KIND(name, bits, grouped)                                                              \
    void name(int rows, int blocks, const u8 *x, size_t stride, const Packed *w, int block, s32 *acc) { \
        dot_tile(rows, blocks, bits, grouped, x, stride, w, block, acc);                           \
    }
DOT_KIND(dot_s8, 8, 0)
DOT_KIND(dot_s4, 4, 0)
DOT_KIND(dot_s4_grouped, 4, 1)
