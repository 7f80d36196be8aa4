/* Products, sums, look-ups and rotations of values. */
#include "rows.h"

/* (a - a_zero) * (b - b_zero) / 2^shift, 17 by 17 bits: b is 256 * high + low. */
INLINE Vector wide_product(Vector a, Vector b, s32 shift) {
    Vector high = multiply_s16(a, Q6_Vw_vasr_VwR(b, 8));
    Vector low = multiply_u16(a, Q6_V_vand_VV(b, splat(255)));
    return join_planes(high, low, shift);
}
INLINE Pair wide_products(Vector a, s32 a_zero, Vector b, s32 b_zero, s32 shift) {
    Vector one = splat_halves(1);
    Pair x = multiply_add(a, one, splat(-a_zero)), y = multiply_add(b, one, splat(-b_zero));
    Vector even = wide_product(first_half(x), first_half(y), shift);
    return Q6_W_vcombine_VV(wide_product(second_half(x), second_half(y), shift), even);
}

/* The same where b has 8 bits: a * (b - b_zero) - a_zero * (b - b_zero). */
INLINE Pair narrow_products(Vector a, Vector a_zero, Vector b, Vector b_zero, s32 shift) {
    Vector d = Q6_Vh_vsub_VhVh(b, b_zero);
    Pair y = Q6_Ww_vmpyacc_WwVhVuh(Q6_Ww_vmpy_VhVuh(d, a), Q6_Vh_vsub_VhVh(b_zero, b), a_zero);
    return shift ? shift_pair(y, shift) : y;
}

void multiply(const Machine *machine, const Op_multiply *op) {
    Result result = make_result(op->zero, op->out_bits);
    RowScale scale = row_scale(machine->vtcm + op->scale, op->scale_step, op->channels);
    /* b is the narrow one */
    const u8 *a = machine->vtcm + op->a, *b = machine->vtcm + op->b;
    s32 a_bytes = op->a_bits / 8, b_bytes = op->b_bits / 8, a_zero = op->a_zero, b_zero = op->b_zero;
    if (a_bytes < b_bytes) {
        const u8 *other = a;
        a = b, b = other, a_bytes = 2, b_bytes = 1, a_zero = op->b_zero, b_zero = op->a_zero;
    }
    Vector a_zeros = splat_halves(a_zero), b_zeros = splat_halves(b_zero);
    s32 shift = op->acc_shift, rows = op->tokens, width = op->channels;
    if (!scale.step) width *= rows, rows = 1; /* one factor for all: a single row */
    u8 *out = machine->vtcm + op->out;
    for (; rows > 0; rows--, a += width * a_bytes, b += width * b_bytes, out += width * result.bytes)
        for (s32 c = 0; c < width; c += BLOCK) {
            Pair x = load_block(a + c * a_bytes, a_bytes), z = load_block(b + c * b_bytes, b_bytes), y[2];
#pragma clang loop unroll(full)
            for (int k = 0; k < 2; k++) {
                y[k] = b_bytes == 1 ? narrow_products(half(x, k), a_zeros, half(z, k), b_zeros, shift)
                                    : wide_products(half(x, k), a_zero, half(z, k), b_zero, shift);
                y[k] = requantize_pair(y[k], scales_at(&scale, (u32)(c + k * HALF)), scale.left);
            }
            store_block(out + c * result.bytes, y[0], y[1], &result, width - c);
        }
}

/* 64 values of one operand in steps of 2^-8 of the result: (x - zero) * 2^14, rescaled. */
INLINE Pair addends(Vector x, Vector zero, Scales scales, s32 left) {
    return requantize_pair(multiply_add(x, splat_halves(1 << 14), zero), scales, left);
}

void add(const Machine *machine, const Op_add *op) {
    Result result = make_result(op->zero, op->out_bits);
    Scales a_scales = same_scales(splat_scale(op->a_multiplier, op->a_shift));
    Scales b_scales = same_scales(splat_scale(op->b_multiplier, op->b_shift));
    Vector a_zero = splat(-op->a_zero * (1 << 14)), b_zero = splat(-op->b_zero * (1 << 14));
    s32 left = op->a_shift < 0 || op->b_shift < 0, a_bytes = op->a_bits / 8, b_bytes = op->b_bits / 8;
    const u8 *a = machine->vtcm + op->a, *b = machine->vtcm + op->b;
    u8 *out = machine->vtcm + op->out;
    for (s32 count = op->count; count > 0; count -= BLOCK) {
        Pair x = load_block(a, a_bytes), z = load_block(b, b_bytes), y[2];
#pragma clang loop unroll(full)
        for (int k = 0; k < 2; k++) {
            Pair sum = Q6_Ww_vadd_WwWw(
                addends(half(x, k), a_zero, a_scales, left), addends(half(z, k), b_zero, b_scales, left));
            y[k] = shift_pair(sum, 8);
        }
        store_block(out, y[0], y[1], &result, count);
        a += BLOCK * a_bytes, b += BLOCK * b_bytes, out += BLOCK * result.bytes;
    }
}

/* 256 entries of u8. A look-up takes the 32 of one index / 32 from a vector of 128, halves interleaved. */
static void look_up_u8(const u8 *a, const u8 *table, s32 count, u8 *out) {
    Vector part[2];
    for (int i = 0; i < 2; i++) part[i] = Q6_Vb_vshuff_Vb(load_aligned(table + i * VECTOR_BYTES));
    for (s32 i = 0; i < count; i += VECTOR_BYTES) {
        Vector x = load(a + i), y = zeros();
        for (int top = 0; top < 8; top++) y = Q6_Vb_vlut32or_VbVbVbR(y, x, part[top / 4], top);
        store_bytes(out + i, y, smaller(count - i, VECTOR_BYTES));
    }
}

/* 256 entries of u16: 16 of one index / 16 at a time; even and odd indices give a vector each. */
static void look_up_u16(const u8 *a, const u8 *table, s32 count, u8 *out) {
    Vector part[4];
    for (int i = 0; i < 4; i++) part[i] = Q6_Vh_vshuff_Vh(load_aligned(table + i * VECTOR_BYTES));
    for (s32 i = 0; i < count; i += VECTOR_BYTES) {
        Vector x = load(a + i);
        Pair y = Q6_W_vcombine_VV(zeros(), zeros());
        for (int top = 0; top < 16; top++) y = Q6_Wh_vlut16or_WhVbVhR(y, x, part[top / 4], top);
        y = Q6_W_vshuff_VVR(second_half(y), first_half(y), -2);
        s32 bytes = 2 * (count - i);
        store_bytes(out + 2 * i, first_half(y), smaller(bytes, VECTOR_BYTES));
        bytes -= VECTOR_BYTES;
        if (bytes > 0) store_bytes(out + 2 * i + VECTOR_BYTES, second_half(y), smaller(bytes, VECTOR_BYTES));
    }
}

/* Lines between s32 knots with 4 fraction bits, one every 2^segment_bits inputs. */
static void interpolate(const Machine *machine, const Op_table_lookup *op) {
    const u8 *table = machine->vtcm + op->table_at;
    Result result = make_result(0, op->out_bits);
    s32 bits = op->segment_bits, bytes = ((1 << (16 - bits)) + 1) * 4;
    for (s32 i = 0; i < op->count; i += LANES) {
        Vector x = widen_u16(load(machine->vtcm + op->a + 2 * i));
        Vector rest = Q6_V_vand_VV(x, splat((1 << bits) - 1));
        Vector at = Q6_Vw_vasl_VwR(Q6_Vw_vasr_VwR(x, bits), 2);
        Vector knot = gather(machine, table, bytes, at);
        Vector rise = Q6_Vw_vsub_VwVw(gather(machine, table + 4, bytes - 4, at), knot);
        /* knot * 2^bits + rise * rest */
        Vector y = Q6_Vw_vmpyieacc_VwVwVuh(Q6_Vw_vasl_VwR(knot, bits), rise, rest);
        y = shift_right_round(y, bits + 4);
        store_words(machine->vtcm + op->out + i * result.bytes, y, &result, op->count - i);
    }
}

void table_lookup(const Machine *machine, const Op_table_lookup *op) {
    const u8 *a = machine->vtcm + op->a, *table = machine->vtcm + op->table_at;
    if (op->a_bits == 16)
        interpolate(machine, op);
    else if (op->out_bits == 8)
        look_up_u8(a, table, op->count, machine->vtcm + op->out);
    else
        look_up_u16(a, table, op->count, machine->vtcm + op->out);
}

/* 64 pairs (a, b) of channels less their zero point, rotated; cosine and sine as s16 with 14 fraction bits. */
INLINE void rotate(Pair *y, Vector a, Vector b, Vector zero, Vector cos, Vector sin) {
    a = Q6_Vh_vsub_VhVh(a, zero), b = Q6_Vh_vsub_VhVh(b, zero);
    Vector minus_b = Q6_Vh_vsub_VhVh(zeros(), b);
    y[0] = Q6_Ww_vmpyacc_WwVhVh(Q6_Ww_vmpy_VhVh(a, cos), minus_b, sin);
    y[1] = Q6_Ww_vmpyacc_WwVhVh(Q6_Ww_vmpy_VhVh(b, cos), a, sin);
}

/* The same of u16, whose differences from the zero point have 17 bits: zero * (sin - cos) and
 * zero * (cos + sin) are made up for modulo 2^32. */
INLINE void rotate_wide(Pair *y, Vector a, Vector b, Vector zero, Vector cos, Vector sin) {
    Pair plus = Q6_Ww_vmpyacc_WwVhVuh(Q6_Ww_vmpy_VhVuh(cos, a), sin, zero);
    Pair minus = Q6_Ww_vmpyacc_WwVhVuh(Q6_Ww_vmpy_VhVuh(sin, b), cos, zero);
    y[0] = Q6_Ww_vsub_WwWw(plus, minus);
    plus = Q6_Ww_vmpyacc_WwVhVuh(Q6_Ww_vmpy_VhVuh(cos, b), sin, a);
    minus = Q6_Ww_vmpyacc_WwVhVuh(Q6_Ww_vmpy_VhVuh(cos, zero), sin, zero);
    y[1] = Q6_Ww_vsub_WwWw(plus, minus);
}

/* One head's row. `channel`: of its first, in the whole row. */
INLINE void rotate_head(const Op_rotary_embedding *op, const u8 *x, const s32 bytes, const u8 *cos,
                        const u8 *sin, s32 channel, u8 *out, const Result *result, const RowScale *scale) {
    Vector zero = splat_halves(op->a_zero);
    for (s32 i = 0; i < op->half; i += HALF) {
        s32 left = op->half - i, first = op->interleaved ? 2 * i : i;
        s32 second = op->interleaved ? first + HALF : op->half + i;
        Pair y[2], block; /* even channels, odd channels */
        if (!op->interleaved)
            block = Q6_W_vcombine_VV(load_half(x + second * bytes, bytes), load_half(x + first * bytes, bytes));
        else if (bytes == 1)
            block = Q6_Wuh_vzxt_Vub(load(x + first));
        else
            block = Q6_W_vdeal_VVR(load_once(x + second * 2), load_once(x + first * 2), -2);
        Vector a = first_half(block), b = second_half(block), c = load(cos + 2 * i), s = load(sin + 2 * i);
        if (bytes == 1)
            rotate(y, a, b, zero, c, s);
        else
            rotate_wide(y, a, b, zero, c, s);
        if (op->interleaved) {
            Pair even = Q6_W_vshuff_VVR(second_half(y[0]), first_half(y[0]), -4);
            Pair odd = Q6_W_vshuff_VVR(second_half(y[1]), first_half(y[1]), -4);
            y[0] = Q6_W_vcombine_VV(first_half(odd), first_half(even));
            y[1] = Q6_W_vcombine_VV(second_half(odd), second_half(even));
        }
        y[0] = requantize_pair(y[0], scales_at(scale, (u32)(channel + first)), scale->left);
        y[1] = requantize_pair(y[1], scales_at(scale, (u32)(channel + second)), scale->left);
        if (op->interleaved) {
            store_block(out + first * result->bytes, y[0], y[1], result, 2 * left);
        } else {
            store_half(out + first * result->bytes, y[0], result, smaller(left, HALF));
            store_half(out + second * result->bytes, y[1], result, smaller(left, HALF));
        }
    }
    for (s32 c = 2 * op->half; c < op->head_dim; c += HALF) {
        Vector offset = splat(-op->a_zero * (1 << 14));
        Pair y = multiply_add(load_half(x + c * bytes, bytes), splat_halves(1 << 14), offset);
        y = requantize_pair(y, scales_at(scale, (u32)(channel + c)), scale->left);
        store_half(out + c * result->bytes, y, result, smaller(op->head_dim - c, HALF));
    }
}

/* A token's heads of 64 channels, all of them rotated: both halves at once. */
INLINE void rotate_heads_of_64(const Op_rotary_embedding *op, const u8 *x, const s32 bytes, const u8 *cos,
                               const u8 *sin, u8 *out, const Result *result, const RowScale *scale) {
    HVX_VectorPred first = Q6_Q_vsetq_R(VECTOR_BYTES / 2);
    Vector c = load(cos), s = load(sin), zero = splat_halves(op->a_zero);
    c = Q6_V_vmux_QVV(first, c, Q6_V_vror_VR(c, VECTOR_BYTES / 2));
    s = Q6_V_vmux_QVV(first, s, Q6_V_vror_VR(s, VECTOR_BYTES / 2));
    /* of u16: -b * sin = b * ~sin + b, for any sin; and the zero point's part once for all heads */
    Vector flipped = Q6_V_vmux_QVV(first, Q6_V_vnot_V(s), s);
    Vector once = Q6_V_vmux_QVV(first, splat_halves(1), zeros());
    Pair offset = Q6_Ww_vmpyacc_WwVhVuh(Q6_Ww_vmpy_VhVuh(c, zero), flipped, zero);
    offset = Q6_Ww_vmpyacc_WwVhVuh(offset, once, zero);
    s32 channels = op->channels;
    for (s32 channel = 0; channel < channels; channel += HALF) {
        Vector a = load_half(x + channel * bytes, bytes);
        Pair y;
        if (bytes == 1) {
            a = Q6_Vh_vsub_VhVh(a, zero);
            Vector b = Q6_V_vror_VR(a, VECTOR_BYTES / 2);
            b = Q6_V_vmux_QVV(first, Q6_Vh_vsub_VhVh(zeros(), b), b);
            y = Q6_Ww_vmpyacc_WwVhVh(Q6_Ww_vmpy_VhVh(a, c), b, s);
        } else {
            Vector b = Q6_V_vror_VR(a, VECTOR_BYTES / 2);
            y = Q6_Ww_vmpyacc_WwVhVuh(Q6_Ww_vmpy_VhVuh(c, a), flipped, b);
            y = Q6_Ww_vsub_WwWw(Q6_Ww_vmpyacc_WwVhVuh(y, once, b), offset);
        }
        y = requantize_pair(y, scales_at(scale, (u32)channel), scale->left);
        store_half(out + channel * result->bytes, y, result, channels - channel);
    }
}

INLINE void rotate_tokens(const Machine *machine, const Op_rotary_embedding *op, const s32 bytes) {
    Result result = make_result(op->zero, op->out_bits);
    RowScale scale = row_scale(machine->vtcm + op->scale, op->scale_step, op->channels);
    const u8 *x = machine->vtcm + op->a, *cos = machine->vtcm + op->cos, *sin = machine->vtcm + op->sin;
    u8 *out = machine->vtcm + op->out;
    for (s32 t = 0; t < op->tokens; t++) {
        if (op->head_dim == HALF && op->half == HALF / 2 && !op->interleaved)
            rotate_heads_of_64(op, x, bytes, cos, sin, out, &result, &scale);
        else
            for (s32 c = 0; c < op->channels; c += op->head_dim)
                rotate_head(op, x + c * bytes, bytes, cos, sin, c, out + c * result.bytes, &result, &scale);
        x += op->channels * bytes, out += op->channels * result.bytes;
        cos += op->half * 2, sin += op->half * 2;
    }
}

void rotary_embedding(const Machine *machine, const Op_rotary_embedding *op) {
    if (op->a_bits == 8)
        rotate_tokens(machine, op, 1);
    else
        rotate_tokens(machine, op, 2);
}

void gather_tokens(const Machine *machine, const Op_gather_tokens *op) {
    Result result = make_result(op->zero, op->out_bits);
    for (s32 t = 0; t < op->tokens; t++) {
        u32 id = (u32)(op->by_position ? machine->position + t : machine->ids[t]);
        const u8 *row = machine->weights + op->table + id * (u32)op->width;
        u8 *out = machine->vtcm + op->out + t * op->width * result.bytes;
        s32 multiplier = ((const s32 *)(machine->weights + op->multiplier_table))[id];
        Scale scale = splat_scale(multiplier, ((const s8 *)(machine->weights + op->shift_table))[id]);
        for (s32 c = 0; c < op->width; c += LANES) {
            Vector y = requantize(widen_s8(load(row + c)), scale);
            store_words(out + c * result.bytes, y, &result, op->width - c);
        }
    }
}

void gather_positions(const Machine *machine, const Op_gather_positions *op) {
    u64 first = op->table + (u64)machine->position * (u64)op->row_bytes;
    /* rows of padding tokens may lie behind the file */
    if (first >= machine->weights_bytes) return;
    u64 left = machine->weights_bytes - first, all = (u64)op->tokens * (u64)op->row_bytes;
    copy(machine->vtcm + op->out, machine->weights + first, (s32)(all < left ? all : left));
}
