/* Vectors of 32 lanes: loading, rescaling and storing values of 8, 16 or 32 bits. */
#ifndef VECTORS_H
#define VECTORS_H

#include "hexagon.h"

#include <hexagon_types.h>
#include <hvx_hexagon_protos.h>

typedef HVX_Vector Vector;
typedef HVX_VectorPair Pair;
typedef long Unaligned __attribute__((vector_size(128), aligned(1)));

INLINE s32 smaller(s32 a, s32 b) { return a < b ? a : b; }
INLINE s32 larger(s32 a, s32 b) { return a > b ? a : b; }

INLINE Vector splat(s32 x) { return Q6_V_vsplat_R(x); }
INLINE Vector zeros(void) { return Q6_V_vzero(); }
INLINE Vector first_half(Pair p) { return Q6_V_lo_W(p); }
INLINE Vector second_half(Pair p) { return Q6_V_hi_W(p); }

INLINE Vector load_aligned(const void *p) { return *(const Vector *)p; }
INLINE Vector load(const void *p) { return *(const Unaligned *)p; }
INLINE void store(void *p, Vector v) { *(Unaligned *)p = v; }

/* The first 1 to 128 bytes of a vector; what lies behind them stays. */
INLINE void store_bytes(void *p, Vector v, s32 bytes) {
    store(p, Q6_V_vmux_QVV(Q6_Q_vsetq2_R(bytes), v, load(p)));
}

INLINE void copy(u8 *to, const u8 *from, s32 bytes) {
    s32 i = 0;
    for (; i + VECTOR_BYTES <= bytes; i += VECTOR_BYTES) store(to + i, load(from + i));
    if (i < bytes) store_bytes(to + i, load(from + i), bytes - i);
}

/* Keep lanes [begin, end) of a vector; the others get 0. */
INLINE Vector keep_lanes(Vector v, s32 begin, s32 end) {
    if (end < LANES) v = end <= 0 ? zeros() : Q6_V_vmux_QVV(Q6_Q_vsetq2_R(end * 4), v, zeros());
    if (begin > 0) v = begin >= LANES ? zeros() : Q6_V_vmux_QVV(Q6_Q_vsetq2_R(begin * 4), zeros(), v);
    return v;
}

INLINE Vector widen_u8(Vector v) {
    return first_half(Q6_Wuw_vunpack_Vuh(first_half(Q6_Wuh_vunpack_Vub(v))));
}
INLINE Vector widen_s8(Vector v) {
    return first_half(Q6_Ww_vunpack_Vh(first_half(Q6_Wh_vunpack_Vb(v))));
}
INLINE Vector widen_u16(Vector v) { return first_half(Q6_Wuw_vunpack_Vuh(v)); }
INLINE Vector widen_s16(Vector v) { return first_half(Q6_Ww_vunpack_Vh(v)); }

/* 32 unsigned values from any byte on. */
INLINE Vector load_words(const u8 *p, s32 bits) {
    return bits == 8 ? widen_u8(load(p)) : widen_u16(load(p));
}

/* Sum of lanes that hold u32. */
INLINE u64 sum_lanes(Vector v) {
    u32 lane[LANES] __attribute__((aligned(128)));
    *(Vector *)lane = v;
    u64 sum = 0;
    for (int i = 0; i < LANES; i++) sum += lane[i];
    return sum;
}

INLINE s32 largest_lane(Vector v) {
    for (int bytes = 64; bytes >= 4; bytes /= 2) v = Q6_Vw_vmax_VwVw(v, Q6_V_vror_VR(v, bytes));
    return Q6_R_vextract_VR(v, 0);
}

/* floor(x * y / 2^31), and the same with 1/2 added. Neither is exact for -2^31 * -2^31. */
INLINE Vector multiply_floor(Vector x, Vector y) {
    return Q6_Vw_vmpyoacc_VwVwVh_s1_sat_shift(Q6_Vw_vmpye_VwVuh(x, y), x, y);
}
INLINE Vector multiply_round(Vector x, Vector y) {
    return Q6_Vw_vmpyoacc_VwVwVh_s1_rnd_sat_shift(Q6_Vw_vmpye_VwVuh(x, y), x, y);
}

/* x * y modulo 2^32, y in s16 or u16. */
INLINE Vector multiply_s16(Vector x, Vector y) { return Q6_Vw_vmpyio_VwVh(x, Q6_Vw_vasl_VwR(y, 16)); }
INLINE Vector multiply_u16(Vector x, Vector y) { return Q6_Vw_vmpyie_VwVuh(x, y); }

/* floor(x / 2^s + 1/2), s >= 1: the last step averages with 0, which cannot overflow. */
INLINE Vector shift_right_round(Vector x, s32 s) {
    return Q6_Vw_vavg_VwVw_rnd(Q6_Vw_vasr_VwR(x, s - 1), zeros());
}

/* floor((256 * high + low) / 2^s + 1/2) modulo 2^32, s in [0, 8]. */
INLINE Vector join_planes(Vector high, Vector low, s32 s) {
    Vector carried = Q6_Vw_vadd_VwVw(high, Q6_Vw_vasr_VwR(low, 8));
    Vector rest = Q6_Vw_vadd_VwVw(Q6_V_vand_VV(low, splat(255)), splat(s ? 1 << (s - 1) : 0));
    return Q6_Vw_vadd_VwVw(Q6_Vw_vasl_VwR(carried, 8 - s), Q6_Vw_vasr_VwR(rest, s));
}

/* Factor of each lane: multiplier * 2^-31 * 2^(left - right). */
typedef struct {
    Vector multiplier, left, right;
} Scale;

INLINE Scale make_scale(Vector multiplier, Vector shift) {
    Vector negated = Q6_Vw_vsub_VwVw(zeros(), shift);
    Scale s = {multiplier, Q6_Vw_vmax_VwVw(negated, zeros()), Q6_Vw_vmax_VwVw(shift, zeros())};
    return s;
}
INLINE Scale splat_scale(s32 multiplier, s32 shift) { return make_scale(splat(multiplier), splat(shift)); }

/* Factors of channels c to c + 31, of blocks {s32 multiplier[32], shift[32]} `step` bytes apart. */
INLINE Scale load_scale(const u8 *blocks, s32 step, s32 c) {
    const u8 *block = blocks + c / LANES * step;
    s32 bytes = c % LANES * 4;
    Vector multiplier = load_aligned(block), shift = load_aligned(block + VECTOR_BYTES);
    if (bytes) {
        multiplier = Q6_V_valign_VVR(load_aligned(block + step), multiplier, bytes);
        shift = Q6_V_valign_VVR(load_aligned(block + step + VECTOR_BYTES), shift, bytes);
    }
    return make_scale(multiplier, shift);
}

/* mqc.arithmetic.requantize */
INLINE Vector requantize(Vector x, Scale s) {
    Vector wide = Q6_Vw_vasl_VwVw(x, s.left);
    HVX_VectorPred fits = Q6_Q_vcmp_eq_VwVw(Q6_Vw_vasr_VwVw(wide, s.left), x);
    Vector limit = Q6_V_vxor_VV(Q6_Vw_vasr_VwR(x, 31), splat(INT32_MAX));
    Vector t = multiply_round(Q6_V_vmux_QVV(fits, wide, limit), s.multiplier);
    Vector less_one = Q6_Vw_vmax_VwVw(Q6_Vw_vsub_VwVw(s.right, splat(1)), zeros());
    Vector rounded = Q6_Vw_vavg_VwVw_rnd(Q6_Vw_vasr_VwVw(t, less_one), zeros());
    return Q6_V_vmux_QVV(Q6_Q_vcmp_gt_VwVw(s.right, zeros()), rounded, t);
}

/* The integers of a result: u8, u16 or s32, with a zero point. */
typedef struct {
    Vector low, high, zero;
    s32 bits, bytes;
} Result;

INLINE Result make_result(s32 zero, s32 bits) {
    s32 low = bits == 32 ? INT32_MIN : -zero, high = bits == 32 ? INT32_MAX : (1 << bits) - 1 - zero;
    Result r = {splat(low), splat(high), splat(zero), bits, bits / 8};
    return r;
}

/* Clamp, add the zero point, and write the first `count` lanes (32 if it is more) from any byte on. */
INLINE void store_words(u8 *p, Vector v, const Result *r, s32 count) {
    v = Q6_Vw_vmin_VwVw(Q6_Vw_vmax_VwVw(v, r->low), r->high);
    v = Q6_Vw_vadd_VwVw_sat(v, r->zero);
    if (r->bits < 32) v = Q6_Vh_vpacke_VwVw(v, v);
    if (r->bits < 16) v = Q6_Vb_vpacke_VhVh(v, v);
    store_bytes(p, v, smaller(count, LANES) * r->bytes);
}

/* Lanes of table[offset], offsets in bytes below `bytes`. */
INLINE Vector gather(const Machine *machine, const u8 *table, s32 bytes, Vector offsets) {
    Q6_vgather_ARMVw((Vector *)machine->gathered, (s32)table, bytes - 1, offsets);
    __asm__ volatile("" ::: "memory");
    return *(volatile Vector *)machine->gathered;
}

/* acc[r] += dot products of row r's `steps` words of four u8 with each lane's four s8 of `weights`. */
INLINE void dot(Vector *acc, const u8 *row, const u8 *weights, s32 steps, const int rows) {
    const Vector *w = (const Vector *)weights;
    const u32 *x[ROWS];
    for (int r = 0; r < rows; r++) x[r] = (const u32 *)(row + r * SCRATCH_ROW);
#pragma clang loop unroll_count(4)
    for (s32 k = 0; k < steps; k++) {
        Vector four = w[k];
        for (int r = 0; r < rows; r++)
            acc[r] = Q6_Vw_vrmpyacc_VwVubVb(acc[r], splat((s32)x[r][k]), four);
    }
}

#endif
