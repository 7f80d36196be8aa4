/* The one matrix kernel: rows of u8 times packed s8 or s4 weights, summed in s32.
 *
 * Weights are blocks of 16 outputs: for each group of 4 inputs 64 bytes (s8) or 32 bytes (s4), see
 * mqc/numerics/layouts.py. `dot_tile` multiplies up to 4 rows with up to 4 blocks. Inputs past the end of a
 * row meet zero weights; they are read, so buffers have slack behind them.
 */

typedef struct {
    const u8 *data;
    size_t block_bytes; /* from one block of 16 outputs to the next */
    int groups4;        /* groups of 4 inputs */
    const u8 *factor;   /* [blocks][groups][16] or NULL: integer scale of each group */
    int group4;         /* groups of 4 inputs per scale */
} Packed;

#define TILE_ROWS 4
#define TILE_BLOCKS 4

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

INLINE __m512i load_block(const u8 *p, int bits) {
    if (bits == 8) return _mm512_loadu_si512(p);
    __m256i v = _mm256_loadu_si256((const __m256i *)p);
    __m256i low = _mm256_and_si256(v, _mm256_set1_epi8(15));
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
    __m512i nibbles = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    __m512i eight = _mm512_set1_epi8(8);
    return _mm512_sub_epi8(_mm512_xor_si512(nibbles, eight), eight);
}

INLINE void dot_fixed(const int rows, const int blocks, const int bits, const int grouped,
                      const u8 *x, size_t stride, const Packed *w, int block, s32 *acc) {
    __m512i sum[TILE_ROWS][TILE_BLOCKS], total[TILE_ROWS][TILE_BLOCKS];
    const u8 *p = w->data + (size_t)block * w->block_bytes;
    const int step = bits * 8;
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++)
            sum[r][b] = total[r][b] = _mm512_setzero_si512();
    int span = grouped ? w->group4 : w->groups4;
    for (int g = 0, k = 0; k < w->groups4; g++) {
        for (int end = k + span; k < end; k++) {
            __m512i weight[TILE_BLOCKS];
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++)
                weight[b] = load_block(p + (size_t)b * w->block_bytes + (size_t)k * step, bits);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                s32 four;
                memcpy(&four, x + (size_t)r * stride + (size_t)k * 4, 4);
                __m512i value = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int b = 0; b < blocks; b++)
                    sum[r][b] = _mm512_dpbusd_epi32(sum[r][b], value, weight[b]);
            }
        }
        if (!grouped) break;
        for (int b = 0; b < blocks; b++) {
            const u8 *f = w->factor + ((size_t)(block + b) * (size_t)(w->groups4 / span) + (size_t)g) * 16;
            __m512i factor = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)f));
            for (int r = 0; r < rows; r++) {
                total[r][b] = _mm512_add_epi32(total[r][b], _mm512_mullo_epi32(sum[r][b], factor));
                sum[r][b] = _mm512_setzero_si512();
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++)
            _mm512_storeu_si512(acc + (r * TILE_BLOCKS + b) * 16, grouped ? total[r][b] : sum[r][b]);
}

#elif defined(__AVX2__)

/* 16 weights (4 outputs of 4 inputs) as s16. */
INLINE __m256i load_quarter(const u8 *p, int quarter, int bits) {
    if (bits == 8)
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + quarter * 16)));
    __m128i v = _mm_loadu_si128((const __m128i *)(p + (quarter & 1) * 16));
    if (quarter >= 2) v = _mm_srli_epi16(v, 4);
    __m128i eight = _mm_set1_epi8(8);
    v = _mm_and_si128(v, _mm_set1_epi8(15));
    return _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_xor_si128(v, eight), eight));
}

/* u8 times s8 sums of four would saturate maddubs, so both are widened to s16 first. */
INLINE void dot_fixed(const int rows, const int blocks, const int bits, const int grouped,
                      const u8 *x, size_t stride, const Packed *w, int block, s32 *acc) {
    const int step = bits * 8;
    int span = grouped ? w->group4 : w->groups4;
    for (int b = 0; b < blocks; b++) {
        const u8 *p = w->data + (size_t)(block + b) * w->block_bytes;
        s32 *out = acc + b * 16;
        for (int r = 0; r < rows; r++) memset(out + r * TILE_BLOCKS * 16, 0, 64);
        for (int g = 0, k0 = 0; k0 < w->groups4; g++, k0 += span) {
            __m256i sum[TILE_ROWS][4];
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < 4; i++) sum[r][i] = _mm256_setzero_si256();
            for (int k = k0; k < k0 + span; k++) {
                __m256i weight[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) weight[i] = load_quarter(p + (size_t)k * step, i, bits);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    s32 four;
                    memcpy(&four, x + (size_t)r * stride + (size_t)k * 4, 4);
                    __m256i value = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++)
                        sum[r][i] = _mm256_add_epi32(sum[r][i], _mm256_madd_epi16(value, weight[i]));
                }
            }
            const u8 *f = grouped ? w->factor + ((size_t)(block + b) * (size_t)(w->groups4 / span) + (size_t)g) * 16 : 0;
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < 4; i++) {
                    s32 pairs[8];
                    _mm256_storeu_si256((__m256i *)pairs, sum[r][i]);
                    for (int j = 0; j < 4; j++)
                        out[r * TILE_BLOCKS * 16 + i * 4 + j] +=
                            (pairs[2 * j] + pairs[2 * j + 1]) * (grouped ? f[i * 4 + j] : 1);
                }
        }
    }
}

#else

INLINE s32 weight_at(const u8 *p, int i, int bits) {
    if (bits == 8) return (s8)p[i];
    int nibble = i < 32 ? p[i] & 15 : p[i - 32] >> 4;
    return (nibble ^ 8) - 8;
}

INLINE void dot_fixed(const int rows, const int blocks, const int bits, const int grouped,
                      const u8 *x, size_t stride, const Packed *w, int block, s32 *acc) {
    const int step = bits * 8;
    int span = grouped ? w->group4 : w->groups4;
    for (int b = 0; b < blocks; b++) {
        const u8 *p = w->data + (size_t)(block + b) * w->block_bytes;
        for (int r = 0; r < rows; r++) {
            s32 *out = acc + (r * TILE_BLOCKS + b) * 16;
            memset(out, 0, 64);
            for (int g = 0, k0 = 0; k0 < w->groups4; g++, k0 += span) {
                s32 sum[16] = {0};
                for (int k = k0; k < k0 + span; k++)
                    for (int j = 0; j < 16; j++)
                        for (int i = 0; i < 4; i++)
                            sum[j] += x[(size_t)r * stride + (size_t)k * 4 + (size_t)i] *
                                      weight_at(p + (size_t)k * step, j * 4 + i, bits);
                const u8 *f = grouped ? w->factor + ((size_t)(block + b) * (size_t)(w->groups4 / span) + (size_t)g) * 16 : 0;
                for (int j = 0; j < 16; j++) out[j] += sum[j] * (grouped ? f[j] : 1);
            }
        }
    }
}

#endif

/* acc[r][b * 16 + j] for r < rows, b < blocks; row length TILE_BLOCKS * 16. */
#define DOT_CASE(R, B) \
    case (R) * 8 + (B): dot_fixed(R, B, bits, grouped, x, stride, w, block, acc); break;

INLINE void dot_tile(int rows, int blocks, const int bits, const int grouped, const u8 *x,
                     size_t stride, const Packed *w, int block, s32 *acc) {
    switch (rows * 8 + blocks) {
        DOT_CASE(1, 1) DOT_CASE(1, 2) DOT_CASE(1, 3) DOT_CASE(1, 4)
        DOT_CASE(2, 1) DOT_CASE(2, 2) DOT_CASE(2, 3) DOT_CASE(2, 4)
        DOT_CASE(3, 1) DOT_CASE(3, 2) DOT_CASE(3, 3) DOT_CASE(3, 4)
        DOT_CASE(4, 1) DOT_CASE(4, 2) DOT_CASE(4, 3) DOT_CASE(4, 4)
    }
}

/* One out-of-line copy for each kind of weight keeps the program small. */
typedef void Dot(int, int, const u8 *, size_t, const Packed *, int, s32 *);
#define DOT_KIND(name, bits, grouped)                                                          \
    static __attribute__((noinline)) void name(int rows, int blocks, const u8 *x, size_t stride, \
                                               const Packed *w, int block, s32 *acc) {          \
        dot_tile(rows, blocks, bits, grouped, x, stride, w, block, acc);                        \
    }
DOT_KIND(dot_s8, 8, 0)
DOT_KIND(dot_s4, 4, 0)
DOT_KIND(dot_s4_grouped, 4, 1)
DOT_KIND(dot_s8_grouped, 8, 1)
