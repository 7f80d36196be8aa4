/* Chooses the rescaling of the instruction set.
 *
 * An instruction set is a header that defines
 *
 *     INLINE void requant_fixed(const Requant *q, const s32 *acc, int c, int n, void *out,
 *                               const int bits);
 *
 * which is `requant_row` for `bits` that is a constant wherever it is called.
 */
#include "requant.h"

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#include "requant_avx512.h"
#elif defined(__aarch64__) && !defined(MQC_PORTABLE) /* where NEON needs no option */
#include "requant_neon.h"
#else
#include "requant_portable.h"
#endif

void requant_row(const Requant *q, const s32 *acc, int c, int n, void *out, int bits) {
    switch (bits) {
        case 8: requant_fixed(q, acc, c, n, out, 8); break;
        case 16: requant_fixed(q, acc, c, n, out, 16); break;
        default: requant_fixed(q, acc, c, n, out, 32);
    }
}
