/* Rescaling in plain C. */
#ifndef MQC_REQUANT_PORTABLE_H
#define MQC_REQUANT_PORTABLE_H

#include "requant.h"

INLINE void requant_fixed(const Requant *q, const s32 *acc, int c, int n, void *out, const int bits) {
    requant_scalar(q, acc, c, n, out, bits);
}

#endif
