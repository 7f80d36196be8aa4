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
KERNEL LinearKernel linear_u8_u8, linear_u8_u16, linear_u16_u8, linear_u16_u16;
KERNEL LinearKernel linear_u8_s32, linear_u16_s32; /* logits: only of the tokens that the caller wants */

/* A product whose matrix has a block for each expert: of outputs (axis 0), or of inputs (axis 1). A token takes
 * those whose gate is not gates_zero. correction and sums: for axis 0 as in `Linear`; for axis 1 the bias and NULL,
 * and `block_correction` and `block_sums` [experts][outputs padded to 16]. */
typedef struct {
    Linear linear;
    int weight_bits, experts, axis, gates_bits;
    s32 gates_zero;
    const s64 *block_correction;
    const s32 *block_sums;
} Experts;
typedef void ExpertsKernel(Run *r, const Experts *e, const void *x, const void *gates, void *y);
KERNEL ExpertsKernel experts_u8_u8, experts_u8_u16, experts_u16_u8, experts_u16_u16;

typedef struct {
    int experts, top_k, groups, top_groups, group_scores;
    int shares, normalization; /* 0 none, 1 sum, 2 softmax */
    s32 x_zero, score_multiplier, score_left, score_right;
    const s32 *bias; /* or NULL */
    Requant requant;
} Route;
typedef void RouteKernel(Run *r, const Route *p, const s32 *exp2, const void *x, void *y);
KERNEL RouteKernel route_u8_u8, route_u8_u16, route_u16_u8, route_u16_u16;

typedef struct {
    s32 x_zero, gates_zero, acc_shift;
    int blocks;
    Requant requant;
} Gate;
typedef void GateKernel(Run *r, const Gate *p, int channels, const void *x, const void *gates, void *y);
KERNEL GateKernel gate_u8_u8_u8, gate_u8_u8_u16, gate_u8_u16_u8, gate_u8_u16_u16;
KERNEL GateKernel gate_u16_u8_u8, gate_u16_u8_u16, gate_u16_u16_u8, gate_u16_u16_u16;

typedef struct {
    int a_channels, b_channels;
    const s32 *index; /* [channels]: of a and b side by side */
    s32 a_zero, a_multiplier, a_left, a_right;
    s32 b_zero, b_multiplier, b_left, b_right;
    s32 zero, high;
} Join;
typedef void JoinKernel(Run *r, const Join *p, int channels, const void *a, const void *b, void *y);
KERNEL JoinKernel join_u8_u8_u8, join_u8_u8_u16, join_u8_u16_u8, join_u8_u16_u16;
KERNEL JoinKernel join_u16_u8_u8, join_u16_u8_u16, join_u16_u16_u8, join_u16_u16_u16;

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
KERNEL EmbeddingKernel embedding_u8, embedding_u16;

typedef struct {
    s32 a_zero, a_multiplier, a_left, a_right;
    s32 b_zero, b_multiplier, b_left, b_right;
    s32 zero, high;
} Add;
typedef void AddKernel(Run *r, const Add *p, int channels, const void *a, const void *b, void *y);
KERNEL AddKernel add_u8_u8_u8, add_u8_u8_u16, add_u8_u16_u8, add_u8_u16_u16;
KERNEL AddKernel add_u16_u8_u8, add_u16_u8_u16, add_u16_u16_u8, add_u16_u16_u16;

typedef struct {
    s32 a_zero, b_zero, acc_shift;
    Requant requant;
} Mul;
typedef void MulKernel(Run *r, const Mul *p, int channels, const void *a, const void *b, void *y);
KERNEL MulKernel mul_u8_u8_u8, mul_u8_u8_u16, mul_u8_u16_u8, mul_u8_u16_u16;
KERNEL MulKernel mul_u16_u8_u8, mul_u16_u8_u16, mul_u16_u16_u8, mul_u16_u16_u16;

/* Of u8: a table of results; b is not used. Of u16: s32 knots every 2^b inputs, 4 fraction bits. */
typedef void LutKernel(Run *r, const void *table, int b, int channels, const void *x, void *y);
KERNEL LutKernel lut_u8_u8, lut_u8_u16, lut_u16_u8, lut_u16_u16;

typedef struct {
    const s16 *cos, *sin; /* [positions, half] */
    int heads, head_dim, half, interleaved;
    s32 x_zero;
    Requant requant;
} Rope;
typedef void RopeKernel(Run *r, const Rope *p, const void *x, void *y);
KERNEL RopeKernel rope_u8_u8, rope_u8_u16, rope_u16_u8, rope_u16_u16;

typedef struct {
    int channels, groups, centered;
    s32 x_zero;
    u64 epsilon;
    const s32 *bias; /* [channels], or NULL: added to directions that are shifted to the right */
    const s8 *bias_shift;
    Requant requant;
} Norm;
typedef void NormKernel(Run *r, const Norm *p, const void *x, void *y);
KERNEL NormKernel norm_u8_u8, norm_u8_u16, norm_u16_u8, norm_u16_u16;

typedef struct {
    int layer, heads, kv_heads, head_dim, value_dim, window, chunk, capacity; /* positions, a multiple of 64 */
    s32 q_zero, k_zero, v_zero;
    s32 score_multiplier, score_left, score_right;
    s32 multiplier, left, right, zero, high;
} Attention;
typedef struct {
    const s32 *exp2;  /* 2^(-i / 2048) for i < 2048, 30 fraction bits */
    const s32 *sinks; /* a score of each head that has no value, or NULL */
    const s32 *cap;   /* knots of a softcap, or NULL: the multiplier then brings scores into its steps */
    const s32 *bias;  /* [heads][positions] to add to the scores of keys, or NULL */
    int positions;
} ScoreTables;
typedef void AttentionKernel(Run *r, const Attention *p, const ScoreTables *tables, const void *q, const void *k,
                             const void *v, void *y);
KERNEL AttentionKernel attention_u8, attention_u16;

typedef struct {
    int cache, channels, taps; /* cache: its number */
    const s16 *weight;         /* [taps][channels] */
    const s32 *bias;
    s32 x_zero, acc_shift;
    Requant requant;
} Convolution;
typedef void ConvolutionKernel(Run *r, const Convolution *p, const void *x, void *y);
KERNEL ConvolutionKernel convolution_u8_u8, convolution_u8_u16, convolution_u16_u8, convolution_u16_u16;

typedef struct {
    int cache, heads, key_heads, key_dim, value_dim; /* cache: its number */
    int steps, decays;                               /* of each head: 1, or key_dim; decays as many, or key_dim */
    int first_position;                              /* where a sequence begins, */
    const s32 *initial;                              /* with this state [heads][key_dim][value_dim]; NULL: zeros */
    int q_bits, k_bits, v_bits, step_bits, beta_bits; /* beta_bits: 0 without */
    s32 q_zero, k_zero, v_zero, step_zero, beta_zero;
    const s32 *decay_multiplier; /* [heads * decays] */
    const s8 *decay_shift;
    s32 beta_multiplier, beta_left, beta_right;
    s32 memory_multiplier, memory_left, memory_right;
    int delta; /* whether by the delta rule */
    int sum_shift, value_shift, update_shift, acc_shift, skip_shift;
    const s32 *skip; /* [heads], or NULL */
    Requant requant;
} LinearAttention;
typedef struct {
    const void *q, *k, *v, *step, *beta; /* beta: or NULL */
} LinearOperands;
typedef void LinearAttentionKernel(Run *r, const LinearAttention *p, const s32 *exp2, const LinearOperands *x, void *y);
KERNEL LinearAttentionKernel linear_attention_u8, linear_attention_u16;

/* A cache of rows as they are. A state of fixed size is one row. */
typedef struct {
    size_t row_bytes;
    int capacity; /* positions */
} Rows;

/* What the generated part defines, as `mqc_program`, for `mqc_engine_open`. */
typedef struct {
    int layers, convolutions, recurrences;
    const Attention *attention; /* [layers] */
    const Rows *rows;           /* [convolutions + recurrences]: their caches are those behind attention's */
    size_t arena_bytes;         /* of one token: values between ops */
    size_t plane_bytes;         /* of one token: one plane of the widest u16 row that is multiplied */
    size_t tile_bytes;          /* of one thread: rows that `experts` gathers */
    void (*run)(Run *r);        /* one call per op */
} Program;

#endif
