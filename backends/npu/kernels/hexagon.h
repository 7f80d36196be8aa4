/* Types, and what the kernels know of the machine. No floating point anywhere in this program. */
#ifndef HEXAGON_H
#define HEXAGON_H

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef short s16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;

#include "commands.h"

#define INLINE static inline __attribute__((always_inline))
#define INT32_MAX 0x7fffffff
#define INT32_MIN (-INT32_MAX - 1)
#define UINT32_MAX 0xffffffffu

#define VECTOR_BYTES 128
#define LANES 32 /* s32 in a vector */
/* Readable behind each memory, because kernels read whole vectors. */
#define MARGIN_BYTES 4096
#define MOST_POSITIONS (1 << 20)
/* Rows of one pass over weights, and bytes from one of them to the next in `scratch`. */
#define ROWS 4
#define SCRATCH_ROW (MOST_POSITIONS + VECTOR_BYTES)
#define SCRATCH_BYTES (ROWS * SCRATCH_ROW)

typedef struct {
    u8 *vtcm;
    u8 *gathered; /* a vector in VTCM behind its stated size: gathers write nowhere else */
    u8 *cache;    /* keys and values of all layers */
    u8 *logits;
    u8 *scratch;  /* of the command that runs */
    const u8 *weights;
    u32 weights_bytes;
    const s32 *ids; /* of this run's tokens */
    s32 position;   /* of the first of them */
} Machine;

/* floor(2^62 / d) for d >= 2^31 */
u32 reciprocal(u32 d);
/* floor(sqrt(x)) for x >= 2^62 */
u32 root(u64 x);

/* Each command but the transfers is a kernel of its name. */
#define DECLARE(upper, name) void name(const Machine *machine, const Op_##name *op);
KERNELS(DECLARE)
#undef DECLARE

#endif
