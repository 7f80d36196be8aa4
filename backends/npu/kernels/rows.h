/* Blocks of 128 values of a row: two halves of 64 lanes of 16 bits, each a pair of vectors of words, even
 * values and odd ones. Loading, rescaling and storing are shared by all 128. */
#ifndef ROWS_H
#define ROWS_H

#include "vectors.h"

#define BLOCK 128
#define HALF 64

/* 128 values of 1 or 2 bytes from any byte on, as u16. */
INLINE Pair load_block(const u8 *p, s32 bytes) {
    if (bytes == 1) return Q6_Wuh_vunpack_Vub(load(p));
    return Q6_W_vcombine_VV(load_once(p + VECTOR_BYTES), load_once(p));
}
/* 64 values of 1 or 2 bytes. */
INLINE Vector load_half(const u8 *p, s32 bytes) {
    return bytes == 1 ? first_half(Q6_Wuh_vunpack_Vub(load(p))) : load(p);
}
INLINE Vector half(Pair block, int k) { return k ? second_half(block) : first_half(block); }

INLINE Vector splat_halves(s32 x) { return Q6_Vh_vsplat_R(x); }

/* x * factor + offset, x in u16 and the factor in s16. */
INLINE Pair multiply_add(Vector x, Vector factor, Vector offset) {
    return Q6_Ww_vmpyacc_WwVhVuh(Q6_W_vcombine_VV(offset, offset), factor, x);
}

/* As `shift_right_round`. */
INLINE Pair shift_pair(Pair x, s32 s) {
    return Q6_W_vcombine_VV(shift_right_round(second_half(x), s), shift_right_round(first_half(x), s));
}

/* Factors of 64 values. */
typedef struct {
    Scale even, odd;
} Scales;

INLINE Scales same_scales(Scale s) {
    Scales both = {s, s};
    return both;
}

/* The factors of a row's channels; one for all of them (step 0) is loaded once. */
typedef struct {
    const u8 *blocks;
    s32 step, left; /* left: some shift is to the left */
    Scales one;
} RowScale;

INLINE RowScale row_scale(const u8 *blocks, s32 step, s32 channels) {
    Vector shifts = load_aligned(blocks + VECTOR_BYTES);
    for (s32 c = LANES; step && c < channels; c += LANES)
        shifts = Q6_V_vor_VV(shifts, load_aligned(blocks + c / LANES * step + VECTOR_BYTES));
    if (channels <= LANES) step = 2 * VECTOR_BYTES; /* a single block may hold a factor per channel */
    Scale first = make_scale(load_aligned(blocks), load_aligned(blocks + VECTOR_BYTES));
    RowScale s = {blocks, step, any_negative(shifts), same_scales(first)};
    return s;
}

/* Factors of channels c to c + 63. */
INLINE Scales scales_at(const RowScale *s, u32 c) {
    if (!s->step) return s->one;
    const u8 *block = s->blocks + c / LANES * (u32)s->step;
    Vector multiplier[3], shift[3];
    for (int i = 0; i < 2; i++) {
        multiplier[i] = load_aligned(block + i * s->step);
        shift[i] = load_aligned(block + i * s->step + VECTOR_BYTES);
    }
    s32 bytes = (s32)(c % LANES) * 4;
    if (bytes) {
        multiplier[2] = load_aligned(block + 2 * s->step);
        shift[2] = load_aligned(block + 2 * s->step + VECTOR_BYTES);
        for (int i = 0; i < 2; i++) {
            multiplier[i] = Q6_V_valign_VVR(multiplier[i + 1], multiplier[i], bytes);
            shift[i] = Q6_V_valign_VVR(shift[i + 1], shift[i], bytes);
        }
    }
    Pair m = Q6_W_vdeal_VVR(multiplier[1], multiplier[0], -4), by = Q6_W_vdeal_VVR(shift[1], shift[0], -4);
    Scales both = {
        make_scale(first_half(m), first_half(by)), make_scale(second_half(m), second_half(by))};
    return both;
}

/* `left` says whether some lane's shift may be to the left. */
INLINE Pair requantize_pair(Pair x, Scales s, s32 left) {
    if (left) return Q6_W_vcombine_VV(requantize(second_half(x), s.odd), requantize(first_half(x), s.even));
    return Q6_W_vcombine_VV(rescale(second_half(x), s.odd), rescale(first_half(x), s.even));
}

INLINE void store_part(u8 *p, Vector v, s32 bytes) {
    if (bytes >= VECTOR_BYTES)
        store(p, v);
    else if (bytes > 0)
        store_bytes(p, v, bytes);
}

/* 64 values with zero point as s16: enough for a result of 8 bits. */
INLINE Vector narrow(Pair y, const Result *r) {
    return Q6_Vh_vadd_VhVh_sat(Q6_Vh_vsat_VwVw(second_half(y), first_half(y)), r->zero_halves);
}

/* Add the zero point, saturate, and write the first `count` of 64 values. As in `store_words`, it may be more
 * where what follows in the row is written later. */
INLINE void store_half(u8 *p, Pair y, const Result *r, s32 count) {
    s32 bytes = count * r->bytes;
    if (r->bits == 8) {
        Vector h = narrow(y, r);
        store_part(p, Q6_Vub_vpack_VhVh_sat(h, h), bytes);
    } else if (r->bits == 16) {
        Vector even = Q6_Vw_vadd_VwVw_sat(first_half(y), r->zero);
        Vector odd = Q6_Vw_vadd_VwVw_sat(second_half(y), r->zero);
        store_part(p, Q6_Vuh_vasr_VwVwR_sat(odd, even, 0), bytes);
    } else {
        Pair words = Q6_W_vshuff_VVR(second_half(y), first_half(y), -4);
        store_part(p, first_half(words), bytes);
        store_part(p + VECTOR_BYTES, second_half(words), bytes - VECTOR_BYTES);
    }
}

/* The same of 128 values. */
INLINE void store_block(u8 *p, Pair first, Pair second, const Result *r, s32 count) {
    if (r->bits == 8) {
        store_part(p, Q6_Vub_vpack_VhVh_sat(narrow(second, r), narrow(first, r)), count);
    } else {
        store_half(p, first, r, count);
        store_half(p + HALF * r->bytes, second, r, count - HALF);
    }
}

#endif
