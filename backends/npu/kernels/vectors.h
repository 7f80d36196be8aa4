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
/* One packet: for two neighbours, clang makes more of `load`. */
INLINE Vector load_once(const void *p) {
    Vector v;
    __asm__("%0 = vmemu(%1+#0)" : "=v"(v) : "r"(p), "m"(*(const Unaligned *)p));
    return v;
}
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

INLINE Vector widen_s8(Vector v) {
    return first_half(Q6_Ww_vunpack_Vh(first_half(Q6_Wh_vunpack_Vb(v))));
}
INLINE Vector widen_u16(Vector v) { return first_half(Q6_Wuw_vunpack_Vuh(v)); }

/* The sums over the lanes of four vectors, modulo 2^32: pairs of lanes change places until each sum is one. */
INLINE void sum_lanes(u32 *sums, Vector a, Vector b, Vector c, Vector d) {
    Pair ab = Q6_W_vshuff_VVR(b, a, -4), cd = Q6_W_vshuff_VVR(d, c, -4);
    Vector two = Q6_Vw_vadd_VwVw(first_half(ab), second_half(ab));
    Pair all = Q6_W_vshuff_VVR(Q6_Vw_vadd_VwVw(first_half(cd), second_half(cd)), two, -8);
    Vector v = Q6_Vw_vadd_VwVw(first_half(all), second_half(all));
    for (int bytes = 64; bytes >= 16; bytes /= 2) v = Q6_Vw_vadd_VwVw(v, Q6_V_vror_VR(v, bytes));
    for (int i = 0; i < 4; i++) sums[i] = (u32)Q6_R_vextract_VR(v, i * 4);
}

/* The sum, or the largest, of all lanes in each of them. */
INLINE Vector sum_everywhere(Vector v) {
    for (int bytes = 64; bytes >= 4; bytes /= 2) v = Q6_Vw_vadd_VwVw(v, Q6_V_vror_VR(v, bytes));
    return v;
}
INLINE Vector largest_lane(Vector v) {
    for (int bytes = 64; bytes >= 4; bytes /= 2) v = Q6_Vw_vmax_VwVw(v, Q6_V_vror_VR(v, bytes));
    return v;
}
INLINE s32 any_negative(Vector v) {
    for (int bytes = 64; bytes >= 4; bytes /= 2) v = Q6_V_vor_VV(v, Q6_V_vror_VR(v, bytes));
    return Q6_R_vextract_VR(v, 0) < 0;
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

/* Factor of each lane: multiplier * 2^-31 * 2^-shift. less_one: max(shift - 1, 0); whole: all bits where
 * shift <= 0. */
typedef struct {
    Vector multiplier, shift, less_one, whole;
} Scale;

INLINE Scale make_scale(Vector multiplier, Vector shift) {
    Vector less_one = Q6_Vw_vsub_VwVw(shift, splat(1));
    Scale s = {multiplier, shift, Q6_Vw_vmax_VwVw(less_one, zeros()), Q6_Vw_vasr_VwR(less_one, 31)};
    return s;
}
INLINE Scale splat_scale(s32 multiplier, s32 shift) { return make_scale(splat(multiplier), splat(shift)); }

/* mqc.numerics.arithmetic.requantize without shifts to the left. The average with itself is what a shift of 0 leaves. */
INLINE Vector rescale(Vector x, Scale s) {
    Vector t = multiply_round(x, s.multiplier);
    return Q6_Vw_vavg_VwVw_rnd(Q6_Vw_vasr_VwVw(t, s.less_one), Q6_V_vand_VV(t, s.whole));
}

/* mqc.numerics.arithmetic.requantize */
INLINE Vector requantize(Vector x, Scale s) {
    Vector left = Q6_Vw_vmax_VwVw(Q6_Vw_vsub_VwVw(zeros(), s.shift), zeros()), wide = Q6_Vw_vasl_VwVw(x, left);
    HVX_VectorPred fits = Q6_Q_vcmp_eq_VwVw(Q6_Vw_vasr_VwVw(wide, left), x);
    Vector limit = Q6_V_vxor_VV(Q6_Vw_vasr_VwR(x, 31), splat(INT32_MAX));
    return rescale(Q6_V_vmux_QVV(fits, wide, limit), s);
}

/* The integers of a result: u8, u16 or s32 (without a zero point). */
typedef struct {
    Vector zero, zero_halves;
    s32 bits, bytes;
} Result;

INLINE Result make_result(s32 zero, s32 bits) {
    Result r = {splat(zero), Q6_Vh_vsplat_R(zero), bits, bits / 8};
    return r;
}

/* Add the zero point, saturate, and write 32 values from any byte on. `count`: of values from here to the end
 * of the row. What is behind the 32 values but in the row may change: it must be written later. */
INLINE void store_words(u8 *p, Vector v, const Result *r, s32 count) {
    v = Q6_Vw_vadd_VwVw_sat(v, r->zero);
    if (r->bits == 16) v = Q6_Vuh_vpack_VwVw_sat(v, v);
    if (r->bits == 8) v = Q6_Vh_vpack_VwVw_sat(v, v), v = Q6_Vub_vpack_VhVh_sat(v, v);
    s32 bytes = count * r->bytes;
    if (bytes >= VECTOR_BYTES)
        store(p, v);
    else
        store_bytes(p, v, smaller(bytes, LANES * r->bytes));
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
