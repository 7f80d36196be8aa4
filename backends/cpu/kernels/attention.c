/* Causal attention over a u8 cache that is stored as packed weights.
 *
 * Keys: blocks of 16 positions, a position being an output: scores are `dot_s8` of a query.
 * Values: blocks of 16 channels, a position being an input: the result is `dot_s8` of the
 * probabilities, whose high and low bytes are two rows. Both hold x - 128 as s8.
 */

#include "attention.h"
#include "softmax.h"

#define CAP_BITS 5 /* of a step between two knots */

/* Scores after the softcap, from its knots, which have 4 fraction bits. */
static void cap_scores(const Attention *p, const s32 *knots, s32 *score, int count) {
    for (int i = 0; i < count; i++) {
        s64 step = (s64)requantize(score[i], p->score_multiplier, p->score_left, p->score_right) + (1 << 15);
        s32 x = clamp(step, 0, 65535), k = x >> CAP_BITS, rest = x & ((1 << CAP_BITS) - 1);
        s64 line = (s64)knots[k] * ((1 << CAP_BITS) - rest) + (s64)knots[k + 1] * rest;
        score[i] = (s32)shift_right_round(line, CAP_BITS + 4);
    }
}

/* Probabilities of positions [begin, end) from scores: two rows of high and low bytes. Returns their sum. */
static s32 softmax(const Attention *p, const ScoreTables *t, const s32 *sink, s32 *score, int begin, int end, u8 *high,
                   u8 *low) {
    SoftmaxScale scale = {p->score_multiplier, p->score_left, p->score_right};
    if (t->cap) {
        cap_scores(p, t->cap, score + begin, end - begin);
        scale = SOFTMAX_STEPS;
    }
    SoftmaxTotal total = exponentials(scale, t->exp2, score + begin, end - begin, sink);
    s32 sum = 0;
    for (int i = begin; i < end; i++) {
        s32 value = probability(total, score[i]);
        high[i] = (u8)(value >> 8);
        low[i] = (u8)value;
        sum += value;
    }
    return sum;
}

/* One token's queries of up to GROUP heads that share a key head. They see positions [begin, end). */
typedef struct {
    const Attention *p;
    const u8 *cache;
    int kv_head, count, begin, end;
    s32 *scores; /* [GROUP][capacity] */
    u8 *planes;  /* [2 * GROUP][capacity]: high and low bytes of probabilities */
} Queries;

/* What a head adds to each of its products: (q - zq)(k - zk) with k = k' + 128 is
 * q.k' - zq.sum(k') + (128 - zk)(sum(q) - dim.zq). */
INLINE s32 query_offset(const Attention *p, const u8 *q) {
    s32 sum = 0;
    for (int d = 0; d < p->head_dim; d++) sum += q[d];
    return (128 - p->k_zero) * (sum - p->head_dim * p->q_zero);
}

/* Products of queries q [count][head_dim] and keys, less zero points; of whole blocks of positions. */
static void scores_of_keys(const Queries *s, const u8 *q) {
    const Attention *p = s->p;
    CacheLayout l = cache_layout(p);
    int dim = p->head_dim, groups4 = padded(dim, 4) / 4, last = (s->end + 15) / 16;
    size_t capacity = (size_t)p->capacity;
    const s32 *key_sums = (const s32 *)(s->cache + l.sums) + (size_t)s->kv_head * capacity;
    Packed keys = {s->cache + (size_t)s->kv_head * l.key_head, (size_t)groups4 * 64, groups4, 0, 0, 0, key_sums};
    s32 tile[TILE_ROWS * TILE_BLOCKS * 16], offset[GROUP];
    for (int g = 0; g < s->count; g++) offset[g] = query_offset(p, q + g * dim);
    for (int block = s->begin / 16; block < last; block += TILE_BLOCKS) {
        int blocks = last - block < TILE_BLOCKS ? last - block : TILE_BLOCKS;
        dot_s8(s->count, blocks, q, (size_t)dim, &keys, block, tile);
        for (int g = 0; g < s->count; g++)
            for (int i = 0; i < blocks * 16; i++)
                s->scores[(size_t)g * capacity + (size_t)(block * 16 + i)] =
                    tile[g * TILE_BLOCKS * 16 + i] + offset[g] - p->q_zero * key_sums[block * 16 + i];
    }
}

/* Planes of probabilities, zero where a group of 4 positions reaches past [begin, end), and their sums. */
static void probabilities(const Queries *s, const ScoreTables *t, int head, s32 *sums) {
    size_t capacity = (size_t)s->p->capacity;
    for (int g = 0; g < s->count; g++) {
        u8 *high = s->planes + (size_t)(2 * g) * capacity, *low = high + capacity;
        for (int i = s->begin / 4 * 4; i < s->begin; i++) high[i] = low[i] = 0;
        for (int i = s->end; i < padded(s->end, 4); i++) high[i] = low[i] = 0;
        const s32 *sink = t->sinks ? t->sinks + head + g : 0;
        s32 *scores = s->scores + (size_t)g * capacity;
        if (t->bias) {
            const s32 *bias = t->bias + (size_t)(head + g) * (size_t)t->positions;
            for (int i = s->begin; i < s->end; i++) scores[i] += bias[i];
        }
        sums[g] = softmax(s->p, t, sink, scores, s->begin, s->end, high, low);
    }
}

/* Values weighted with the probabilities, two heads at a time, into y [count][value_dim] from element `at` on. */
static void weighted_values(const Queries *s, const s32 *sums, void *y, int bits, size_t at) {
    const Attention *p = s->p;
    CacheLayout l = cache_layout(p);
    int dim = p->value_dim, first4 = s->begin / 4, end4 = (s->end + 3) / 4, last = padded(dim, 16) / 16;
    size_t capacity = (size_t)p->capacity;
    const u8 *head = s->cache + l.values + (size_t)s->kv_head * l.value_head;
    Packed values = {head + (size_t)first4 * 64, capacity / 4 * 64, end4 - first4, 0, 0, 0, 0};
    s32 tile[TILE_ROWS * TILE_BLOCKS * 16];
    for (int block = 0; block < last; block += TILE_BLOCKS) {
        int blocks = last - block < TILE_BLOCKS ? last - block : TILE_BLOCKS;
        for (int g = 0; g < s->count; g += 2) {
            int pair = s->count - g < 2 ? 1 : 2;
            const u8 *rows = s->planes + (size_t)(2 * g) * capacity + (size_t)first4 * 4;
            dot_s8(2 * pair, blocks, rows, capacity, &values, block, tile);
            for (int i = g; i < g + pair; i++) {
                const s32 *high = tile + (i - g) * 2 * TILE_BLOCKS * 16, *low = high + TILE_BLOCKS * 16;
                for (int d = block * 16, j = 0; d < dim && j < blocks * 16; d++, j++) {
                    s32 acc = high[j] * 256 + low[j] + (128 - p->v_zero) * sums[i];
                    s64 out = (s64)requantize(acc, p->multiplier, p->left, p->right) + p->zero;
                    store(y, bits, (int)(at + (size_t)(i * dim + d)), clamp(out, 0, p->high));
                }
            }
        }
    }
}

/* q [count][head_dim] of the query heads from `head` on; its result in y begins at element `at`. */
static void attend(const Run *r, const Attention *p, const ScoreTables *t, int kv_head, int head, int count,
                   int position, const u8 *q, void *y, int bits, size_t at) {
    int begin = p->window && position + 1 > p->window ? position + 1 - p->window : 0;
    if (p->chunk && begin < position - position % p->chunk) begin = position - position % p->chunk;
    u8 *planes = r->scores + (size_t)GROUP * (size_t)p->capacity * sizeof(s32);
    Queries s = {p, r->cache[p->layer], kv_head, count, begin, position + 1, (s32 *)r->scores, planes};
    s32 sums[GROUP];
    scores_of_keys(&s, q);
    probabilities(&s, t, head, sums);
    weighted_values(&s, sums, y, bits, at);
}

INLINE void attention_kind(const Run *r, const Attention *p, const ScoreTables *tables, const u8 *q, const u8 *k,
                           const u8 *v, void *y, const int bits) {
    u8 *cache = r->cache[p->layer];
    size_t key_width = (size_t)p->kv_heads * (size_t)p->head_dim, value_width = (size_t)p->kv_heads * (size_t)p->value_dim;
    int begin, end;
    share(r, r->tokens, 1, &begin, &end);
    for (int t = begin; t < end; t++)
        cache_write(p, cache, r->position + t, k + (size_t)t * key_width, v + (size_t)t * value_width);
    barrier(r);
    int group = p->heads / p->kv_heads, parts = (group + GROUP - 1) / GROUP;
    int items = p->kv_heads * parts;
    /* Later tokens see more keys: items are dealt out in turn, not in runs. */
    for (int item = r->tid; item < r->tokens * items; item += r->threads) {
        int t = item / items, head = item % items / parts, part = item % parts;
        int count = group - part * GROUP < GROUP ? group - part * GROUP : GROUP;
        int first = head * group + part * GROUP; /* query head */
        size_t row = (size_t)t * (size_t)p->heads + (size_t)first;
        attend(r, p, tables, head, first, count, r->position + t, q + row * (size_t)p->head_dim, y, bits,
               row * (size_t)p->value_dim);
    }
    barrier(r);
}
void attention_u8(Run *r, const Attention *p, const ScoreTables *tables, const void *q, const void *k, const void *v,
                  void *y) {
    attention_kind(r, p, tables, q, k, v, y, 8);
}
void attention_u16(Run *r, const Attention *p, const ScoreTables *tables, const void *q, const void *k, const void *v,
                   void *y) {
    attention_kind(r, p, tables, q, k, v, y, 16);
}
