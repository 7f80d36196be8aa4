/* Compares dot_s8, dot_s4, dot_s4_grouped and requant_row with the portable ones; 1 if something differs. */
#include <stdio.h>

#include "dot_portable.h"
#include "requant_portable.h"

enum { MOST_GROUPS4 = 70, BLOCKS = 5, SLACK = 64 };

static u64 state = 1;
static u32 next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (u32)(state >> 32);
}
/* Every fourth byte is an extreme one. */
static u8 byte(void) { return next() % 4 ? (u8)next() : next() % 2 ? 0x80 : 0x7f ^ (u8)(next() % 2 * 0x80); }

static u8 x[TILE_ROWS * MOST_GROUPS4 * 4 + SLACK], weights[BLOCKS * MOST_GROUPS4 * 64 + SLACK];
static u8 factors[BLOCKS * MOST_GROUPS4 * 16];

static int differs(Dot *dot, int bits, int grouped, Packed w, int rows, int blocks, int block) {
    s32 want[TILE_ROWS * TILE_BLOCKS * 16] = {0}, got[TILE_ROWS * TILE_BLOCKS * 16] = {0};
    size_t stride = (size_t)w.groups4 * 4;
    dot_tile(rows, blocks, bits, grouped, x, stride, &w, block, want);
    dot(rows, blocks, x, stride, &w, block, got);
    for (int r = 0; r < rows; r++)
        if (memcmp(want + r * TILE_BLOCKS * 16, got + r * TILE_BLOCKS * 16, (size_t)blocks * 64)) {
            printf("bits %d, grouped %d: %d rows, %d blocks from %d, %d groups of 4, %d a scale\n", bits, grouped,
                   rows, blocks, block, w.groups4, w.group4);
            return 1;
        }
    return 0;
}

/* A row of ones gives the sums of weights. */
static void add_up(Packed w, int bits, int grouped, s32 *sums) {
    u8 ones[MOST_GROUPS4 * 4];
    s32 tile[TILE_ROWS * TILE_BLOCKS * 16];
    memset(ones, 1, sizeof ones);
    for (int b = 0; b < BLOCKS; b++) {
        dot_tile(1, 1, bits, grouped, ones, 0, &w, b, tile);
        memcpy(sums + b * 16, tile, 64);
    }
}

static int check_dot(int groups4, int group4, int extreme) {
    s32 sums[BLOCKS * 16];
    for (size_t i = 0; i < sizeof x; i++) x[i] = extreme ? 255 : byte();
    for (size_t i = 0; i < sizeof weights; i++) weights[i] = extreme ? 0x80 : byte();
    for (size_t i = 0; i < sizeof factors; i++) factors[i] = extreme ? 16 : (u8)(1 + next() % 16);
    int found = 0;
    for (int rows = 1; rows <= TILE_ROWS; rows++)
        for (int blocks = 1; blocks <= TILE_BLOCKS; blocks++) {
            int block = BLOCKS - blocks;
            Packed eight = {weights, (size_t)groups4 * 64, groups4, 0, 0, 0, 0}, four = eight;
            found |= differs(dot_s8, 8, 0, eight, rows, blocks, block);
            add_up(eight, 8, 0, sums);
            eight.sums = four.sums = sums;
            found |= differs(dot_s8, 8, 0, eight, rows, blocks, block);
            four.block_bytes = (size_t)groups4 * 32;
            add_up(four, 4, 0, sums);
            found |= differs(dot_s4, 4, 0, four, rows, blocks, block);
            four.factor = factors, four.group4 = group4, four.factor_bytes = (size_t)(groups4 / group4) * 16;
            add_up(four, 4, 1, sums);
            found |= differs(dot_s4_grouped, 4, 1, four, rows, blocks, block);
        }
    return found;
}

/* 16 times the largest sum of 4-bit weights leaves s32. */
static int check_long(void) {
    enum { GROUPS4 = 36000 };
    static u8 long_x[GROUPS4 * 4 + SLACK], long_weights[GROUPS4 * 32 + SLACK], scales[2 * 16];
    s32 want[TILE_ROWS * TILE_BLOCKS * 16], got[TILE_ROWS * TILE_BLOCKS * 16], sums[16];
    memset(long_x, 255, sizeof long_x);
    memset(long_weights, 0x88, sizeof long_weights);
    memset(scales, 4, sizeof scales);
    Packed w = {long_weights, GROUPS4 * 32, GROUPS4, scales, GROUPS4 / 2, 2 * 16, sums};
    for (int i = 0; i < 16; i++) sums[i] = -8 * 4 * GROUPS4;
    dot_tile(1, 1, 4, 0, long_x, 0, &w, 0, want);
    dot_s4(1, 1, long_x, 0, &w, 0, got);
    if (memcmp(want, got, 64)) return puts("a long row of 4-bit weights"), 1;
    for (int i = 0; i < 16; i++) sums[i] *= 4;
    dot_tile(1, 1, 4, 1, long_x, 0, &w, 0, want);
    dot_s4_grouped(1, 1, long_x, 0, &w, 0, got);
    if (memcmp(want, got, 64)) return puts("long groups of 4-bit weights"), 1;
    return 0;
}

static s32 s32_of(u32 kind) {
    return kind == 0 ? INT32_MIN : kind == 1 ? INT32_MAX : (s32)next() >> next() % 32;
}

static int check_requant(int count, int bits) {
    s32 acc[48], multiplier[64], left[64], right[64], want[48] = {0}, got[48] = {0};
    int any_left = (int)(next() % 2);
    for (int i = 0; i < 64; i++) {
        int shift = (int)(next() % 32);
        u32 fraction = next() % 4 ? next() >> 2 : (1u << 30) - 1;
        multiplier[i] = next() % 8 ? (s32)(1u << 30 | fraction) * (next() % 2 ? 1 : -1) : 0;
        left[i] = any_left && next() % 2 ? shift : 0;
        right[i] = left[i] ? 0 : shift;
    }
    for (int i = 0; i < count; i++) acc[i] = s32_of(next() % 16);
    s32 zero = bits == 32 ? 0 : (s32)(next() % (1u << bits));
    Requant q = {multiplier, left, right, any_left, zero, bits == 32 ? INT32_MIN : 0,
                 bits == 32 ? INT32_MAX : (1 << bits) - 1};
    requant_fixed(&q, acc, 16, count, want, bits);
    requant_row(&q, acc, 16, count, got, bits);
    if (!memcmp(want, got, sizeof want)) return 0;
    printf("requant of %d to %d bits\n", count, bits);
    return 1;
}

int main(void) {
    int found = 0;
    for (int groups4 = 1; groups4 <= MOST_GROUPS4; groups4++) {
        int group4 = 1 + (int)(next() % 9);
        while (groups4 % group4) group4--;
        found |= check_dot(groups4, group4, groups4 % 7 == 0);
    }
    found |= check_long();
    for (int i = 0; i < 3000; i++) found |= check_requant(1 + i % 48, i % 3 == 0 ? 8 : i % 3 == 1 ? 16 : 32);
    return found;
}
