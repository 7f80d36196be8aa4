/* What a generated program calls: a function per kernel, and the constants that it takes.
 *
 * Activations of an op are rows that follow one another: token t, channel c is element
 * t * channels + c, u8 or u16 as the function's name says, operands first. Every thread calls every
 * kernel, which computes its share and ends in a barrier.
 */
#ifndef MQC_KERNELS_H
#define MQC_KERNELS_H

#include "dot.h"
#include "prelude.h"
#include "requant.h"
#include "threads.h"

/* A value between ops: `offset` counts bytes of one token. */
INLINE void *value(const Run *r, size_t offset) { return r->arena + (size_t)CHUNK * offset; }

typedef struct {
    Packed weight;
    Dot *dot;
    int inputs, outputs;
    const s64 *correction; /* bias - x_zero * (sum of weights), per output, padded to 16 */
    int acc_shift;
    Requant requant;
} Linear;
typedef void LinearKernel(Run *r, const Linear *l, const void *x, void *y);
LinearKernel linear_u8_u8, linear_u8_u16, linear_u16_u8, linear_u16_u16;
LinearKernel linear_u8_s32, linear_u16_s32; /* logits: only of the tokens that the caller wants */

typedef struct {
    const u8 *table; /* n16k4 blocks of rows */
    size_t block_bytes;
    int channels;
    const s32 *multiplier;
    const s8 *shift;
    s32 zero, high;
} Embedding;
/* index: a row per token, or NULL for the token's position. */
typedef void EmbeddingKernel(Run *r, const Embedding *e, const s32 *index, void *y);
EmbeddingKernel embedding_u8, embedding_u16;

typedef struct {
    s32 a_zero, a_multiplier, a_left, a_right;
    s32 b_zero, b_multiplier, b_left, b_right;
    s32 zero, high;
} Add;
typedef void AddKernel(Run *r, const Add *p, int channels, const void *a, const void *b, void *y);
AddKernel add_u8_u8_u8, add_u8_u8_u16, add_u8_u16_u8, add_u8_u16_u16;
AddKernel add_u16_u8_u8, add_u16_u8_u16, add_u16_u16_u8, add_u16_u16_u16;

typedef struct {
    s32 a_zero, b_zero, acc_shift;
    Requant requant;
} Mul;
typedef void MulKernel(Run *r, const Mul *p, int channels, const void *a, const void *b, void *y);
MulKernel mul_u8_u8_u8, mul_u8_u8_u16, mul_u8_u16_u8, mul_u8_u16_u16;
MulKernel mul_u16_u8_u8, mul_u16_u8_u16, mul_u16_u16_u8, mul_u16_u16_u16;

/* Of u8: a table of results; b is not used. Of u16: s32 knots every 2^b inputs, 4 fraction bits. */
typedef void LutKernel(Run *r, const void *table, int b, int channels, const void *x, void *y);
LutKernel lut_u8_u8, lut_u8_u16, lut_u16_u8, lut_u16_u16;

typedef struct {
    const s16 *cos, *sin; /* [positions, half] */
    int heads, head_dim, half, interleaved;
    s32 x_zero;
    Requant requant;
} Rope;
typedef void RopeKernel(Run *r, const Rope *p, const void *x, void *y);
RopeKernel rope_u8_u8, rope_u8_u16, rope_u16_u8, rope_u16_u16;

typedef struct {
    int channels, groups, centered;
    s32 x_zero;
    u64 epsilon;
    Requant requant;
} Norm;
typedef void NormKernel(Run *r, const Norm *p, const void *x, void *y);
NormKernel norm_u8_u8, norm_u8_u16, norm_u16_u8, norm_u16_u16;

typedef struct {
    int layer, heads, kv_heads, head_dim, window, capacity; /* positions, a multiple of 64 */
    s32 q_zero, k_zero, v_zero;
    s32 score_multiplier, score_left, score_right;
    s32 multiplier, left, right, zero, high;
} Attention;
/* exp2: 2^(-i / 2048) for i < 2048, 30 fraction bits. */
typedef void AttentionKernel(Run *r, const Attention *p, const s32 *exp2, const void *q, const void *k,
                             const void *v, void *y);
AttentionKernel attention_u8, attention_u16;

/* What the generated part defines, as `mqc_program`, for `mqc_open`. */
typedef struct {
    int layers;
    const Attention *attention; /* [layers] */
    size_t arena_bytes;         /* of one token: values between ops */
    size_t plane_bytes;         /* of one token: one plane of the widest u16 row that is multiplied */
    void (*run)(Run *r);        /* one call per op */
} Program;

#endif
