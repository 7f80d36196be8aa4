/* Products, sums, look-ups and rotations of values. */
#include "vectors.h"

void multiply(const Machine *machine, const Op_multiply *op) {
    Result result = make_result(op->zero, op->out_bits);
    Vector a_zero = splat(op->a_zero), b_zero = splat(op->b_zero);
    for (s32 t = 0; t < op->tokens; t++)
        for (s32 c = 0; c < op->channels; c += LANES) {
            s32 i = t * op->channels + c;
            Scale scale = load_scale(machine->vtcm + op->scale, op->scale_step, c);
            Vector a = load_words(machine->vtcm + op->a + i * (op->a_bits / 8), op->a_bits);
            Vector b = load_words(machine->vtcm + op->b + i * (op->b_bits / 8), op->b_bits);
            a = Q6_Vw_vsub_VwVw(a, a_zero);
            b = Q6_Vw_vsub_VwVw(b, b_zero);
            /* 17 by 17 bits: b is 256 * high + low */
            Vector high = multiply_s16(a, Q6_Vw_vasr_VwR(b, 8));
            Vector low = multiply_u16(a, Q6_V_vand_VV(b, splat(255)));
            Vector y = requantize(join_planes(high, low, op->acc_shift), scale);
            store_words(machine->vtcm + op->out + i * result.bytes, y, &result, op->channels - c);
        }
}

/* One operand in steps of 2^-8 of the result. */
INLINE Vector addend(const u8 *p, s32 i, s32 bits, s32 zero, Scale scale) {
    Vector d = Q6_Vw_vsub_VwVw(load_words(p + i * (bits / 8), bits), splat(zero));
    return requantize(Q6_Vw_vasl_VwR(d, 14), scale);
}

void add(const Machine *machine, const Op_add *op) {
    Result result = make_result(op->zero, op->out_bits);
    Scale a_scale = splat_scale(op->a_multiplier, op->a_shift);
    Scale b_scale = splat_scale(op->b_multiplier, op->b_shift);
    for (s32 i = 0; i < op->count; i += LANES) {
        Vector a = addend(machine->vtcm + op->a, i, op->a_bits, op->a_zero, a_scale);
        Vector b = addend(machine->vtcm + op->b, i, op->b_bits, op->b_zero, b_scale);
        Vector y = shift_right_round(Q6_Vw_vadd_VwVw(a, b), 8);
        store_words(machine->vtcm + op->out + i * result.bytes, y, &result, op->count - i);
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
        Vector x = load_words(machine->vtcm + op->a + 2 * i, 16);
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

/* 32 pairs (a, b) of channels, rotated; cosine and sine as s16 with 14 fraction bits. */
INLINE Pair rotate(Vector a, Vector b, const u8 *cos, const u8 *sin) {
    Vector c = widen_s16(load(cos)), s = widen_s16(load(sin));
    Vector first = Q6_Vw_vsub_VwVw(multiply_s16(c, a), multiply_s16(s, b));
    Vector second = Q6_Vw_vadd_VwVw(multiply_s16(c, b), multiply_s16(s, a));
    return Q6_W_vcombine_VV(second, first);
}

/* One head's row. `channel`: of its first, in the whole row. */
static void rotate_head(const Machine *machine, const Op_rotary_embedding *op, const u8 *x, s32 t,
                        s32 channel, u8 *out, const Result *result) {
    const u8 *cos = machine->vtcm + op->cos + t * op->half * 2, *sin = machine->vtcm + op->sin + t * op->half * 2;
    const u8 *scale = machine->vtcm + op->scale;
    Vector zero = splat(op->a_zero);
    for (s32 i = 0; i < op->half; i += LANES) {
        s32 left = op->half - i, first = op->interleaved ? 2 * i : i;
        s32 second = op->interleaved ? first + LANES : op->half + i;
        s32 first_count = left, second_count = left;
        Vector a, b;
        if (op->interleaved) {
            Pair both = Q6_Wuh_vzxt_Vub(load(x + first)); /* even bytes, odd bytes */
            a = widen_u16(first_half(both)), b = widen_u16(second_half(both));
            first_count = 2 * left, second_count = 2 * left - LANES;
        } else {
            a = load_words(x + first, 8), b = load_words(x + second, 8);
        }
        Pair y = rotate(Q6_Vw_vsub_VwVw(a, zero), Q6_Vw_vsub_VwVw(b, zero), cos + 2 * i, sin + 2 * i);
        if (op->interleaved) y = Q6_W_vshuff_VVR(second_half(y), first_half(y), -4);
        Scale s = load_scale(scale, op->scale_step, channel + first);
        store_words(out + first * result->bytes, requantize(first_half(y), s), result, first_count);
        if (second_count <= 0) continue;
        s = load_scale(scale, op->scale_step, channel + second);
        store_words(out + second * result->bytes, requantize(second_half(y), s), result, second_count);
    }
    for (s32 c = 2 * op->half; c < op->head_dim; c += LANES) {
        Vector y = Q6_Vw_vasl_VwR(Q6_Vw_vsub_VwVw(load_words(x + c, 8), zero), 14);
        Scale s = load_scale(scale, op->scale_step, channel + c);
        store_words(out + c * result->bytes, requantize(y, s), result, op->head_dim - c);
    }
}

void rotary_embedding(const Machine *machine, const Op_rotary_embedding *op) {
    Result result = make_result(op->zero, op->out_bits);
    for (s32 t = 0; t < op->tokens; t++)
        for (s32 c = 0; c < op->channels; c += op->head_dim) {
            s32 i = t * op->channels + c;
            u8 *out = machine->vtcm + op->out + i * result.bytes;
            rotate_head(machine, op, machine->vtcm + op->a + i, t, c, out, &result);
        }
}

void gather_tokens(const Machine *machine, const Op_gather_tokens *op) {
    Result result = make_result(op->zero, op->out_bits);
    for (s32 t = 0; t < op->tokens; t++) {
        u32 id = (u32)(op->by_position ? machine->position + t : machine->ids[t]);
        const u8 *row = machine->weights + op->table + id * (u32)op->width;
        u8 *out = machine->vtcm + op->out + t * op->width * result.bytes;
        s32 multiplier = ((const s32 *)(machine->weights + op->multiplier_table))[id];
        Scale scale = splat_scale(multiplier, ((const s8 *)(machine->weights + op->shift_table))[id]);
        for (s32 c = 0; c < op->width; c += LANES)
            store_words(out + c * result.bytes, requantize(widen_s8(load(row + c)), scale), &result, op->width - c);
    }
}

void gather_positions(const Machine *machine, const Op_gather_positions *op) {
    u64 first = op->table + (u64)machine->position * (u64)op->row_bytes;
    /* rows of padding tokens may lie behind the file */
    if (first >= machine->weights_bytes) return;
    u64 left = machine->weights_bytes - first, all = (u64)op->tokens * (u64)op->row_bytes;
    copy(machine->vtcm + op->out, machine->weights + first, (s32)(all < left ? all : left));
}
