/* Matrix products with weights in records (mqc/numerics/htp_tiles.py), requantized. */
#include "vectors.h"

#define RECORD_HEADER 512

typedef struct {
    s32 inputs, group; /* group: inputs per factor, 0 for none */
    s32 factor_bytes;
} Shape;

INLINE Vector sign_extend_4(Vector nibbles) {
    Vector eights = splat(0x08080808);
    return Q6_Vb_vsub_VbVb(Q6_V_vxor_VV(Q6_V_vand_VV(nibbles, splat(0x0f0f0f0f)), eights), eights);
}

/* As `dot`, with eight 4-bit weights a lane in each vector: low halves for even words of a row. */
INLINE void dot_4(Vector *acc, const u8 *row, const u8 *weights, s32 steps, const int rows) {
    const Vector *w = (const Vector *)weights;
    const u32 *x[ROWS];
    for (int r = 0; r < rows; r++) x[r] = (const u32 *)(row + r * SCRATCH_ROW);
#pragma clang loop unroll_count(2)
    for (s32 k = 0; k < steps; k++) {
        Vector even = sign_extend_4(w[k]), odd = sign_extend_4(Q6_Vuw_vlsr_VuwR(w[k], 4));
        for (int r = 0; r < rows; r++) {
            acc[r] = Q6_Vw_vrmpyacc_VwVubVb(acc[r], splat((s32)x[r][2 * k]), even);
            acc[r] = Q6_Vw_vrmpyacc_VwVubVb(acc[r], splat((s32)x[r][2 * k + 1]), odd);
        }
    }
}

/* acc[r] += the sum of each group times its factor. Groups are whole vectors, a single one excepted. */
INLINE void dot_groups(Vector *acc, const u8 *row, const u8 *record, const Shape *s, const int rows) {
    const u8 *weights = record + RECORD_HEADER + s->factor_bytes;
    s32 steps = (s->group + 7) / 8, groups = s->inputs / s->group;
    for (s32 g = 0; g < groups; g++) {
        Vector sum[ROWS];
        for (int r = 0; r < rows; r++) sum[r] = zeros();
        dot_4(sum, row + g * steps * 8, weights + g * steps * VECTOR_BYTES, steps, rows);
        Vector four = load_aligned(record + RECORD_HEADER + g / 4 * VECTOR_BYTES);
        Vector factor = Q6_V_vand_VV(Q6_Vuw_vlsr_VuwR(four, g % 4 * 8), splat(255));
        for (int r = 0; r < rows; r++) acc[r] = Q6_Vw_vadd_VwVw(acc[r], multiply_u16(sum[r], factor));
    }
}

INLINE void product_rows(Vector *acc, const u8 *row, const u8 *record, s32 weight_bits, const Shape *s,
                         const int rows) {
    for (int r = 0; r < rows; r++) acc[r] = zeros();
    if (weight_bits == 8)
        dot(acc, row, record + RECORD_HEADER, (s->inputs + 3) / 4, rows);
    else if (!s->group)
        dot_4(acc, row, record + RECORD_HEADER, (s->inputs + 7) / 8, rows);
    else
        dot_groups(acc, row, record, s, rows);
}

/* acc[r] = dot products of `rows` rows in scratch with a record's 32 outputs. */
static void product(Vector *acc, const u8 *row, const u8 *record, s32 weight_bits, const Shape *s, int rows) {
    if (rows == 1)
        product_rows(acc, row, record, weight_bits, s, 1);
    else if (rows == 2)
        product_rows(acc, row, record, weight_bits, s, 2);
    else
        product_rows(acc, row, record, weight_bits, s, 4);
}

/* A row of u16 as two rows of u8: high bytes, then low bytes. */
static void split_planes(u8 *planes, const u8 *row, s32 inputs) {
    for (s32 i = 0; i < inputs; i += VECTOR_BYTES) {
        Vector first = load(row + 2 * i), second = load(row + 2 * i + VECTOR_BYTES);
        *(Vector *)(planes + i) = Q6_Vb_vpacko_VhVh(second, first);
        *(Vector *)(planes + SCRATCH_ROW + i) = Q6_Vb_vpacke_VhVh(second, first);
    }
}

/* Whether some record shifts to the left. */
static s32 any_left(const u8 *records, s32 count, s32 record_bytes) {
    Vector shifts = zeros();
    for (; count > 0; count -= LANES, records += record_bytes)
        shifts = Q6_V_vor_VV(shifts, load_aligned(records + 3 * VECTOR_BYTES));
    return any_negative(shifts);
}

void fully_connected(const Machine *machine, const Op_fully_connected *op) {
    Shape shape = {op->inputs, op->group, 0};
    if (op->group) shape.factor_bytes = (op->inputs / op->group + 3) / 4 * VECTOR_BYTES;
    Result result = make_result(op->zero, op->out_bits);
    s32 wide = op->a_bits == 16, most = wide ? ROWS / 2 : ROWS;
    s32 left = any_left(machine->vtcm + op->weight, op->outputs, op->record_bytes);
    for (s32 t = 0; t < op->tokens; t += most) {
        s32 rows = smaller(most, op->tokens - t);
        for (s32 r = 0; r < rows; r++) {
            const u8 *row = machine->vtcm + op->a + (t + r) * op->inputs * (op->a_bits / 8);
            if (wide)
                split_planes(machine->scratch + 2 * r * SCRATCH_ROW, row, op->inputs);
            else
                copy(machine->scratch + r * SCRATCH_ROW, row, op->inputs);
        }
        for (s32 n = 0; n < op->outputs; n += LANES) {
            const u8 *record = machine->vtcm + op->weight + n / LANES * op->record_bytes;
            u8 *out = machine->vtcm + op->out + t * op->out_row_bytes + n * result.bytes;
            Vector low = load_aligned(record), high = load_aligned(record + VECTOR_BYTES), acc[ROWS];
            Scale scale =
                make_scale(load_aligned(record + 2 * VECTOR_BYTES), load_aligned(record + 3 * VECTOR_BYTES));
            product(acc, machine->scratch, record, op->weight_bits, &shape, wide ? 2 * rows : rows);
            for (s32 r = 0; r < rows; r++) {
                Vector sum = Q6_Vw_vadd_VwVw(acc[wide ? 2 * r + 1 : r], low);
                if (wide) sum = join_planes(Q6_Vw_vadd_VwVw(acc[2 * r], high), sum, op->acc_shift);
                sum = left ? requantize(sum, scale) : rescale(sum, scale);
                store_words(out + r * op->out_row_bytes, sum, &result, op->outputs - n);
            }
        }
    }
}
