/* The cache of keys and values, and the scratch memory of attention: for kernels, and for who makes the memory. */
#ifndef MQC_ATTENTION_H
#define MQC_ATTENTION_H

#include "kernels.h"

#define GROUP 4 /* query heads handled together */

/* Bytes of one layer's cache, and where its parts begin: keys, sums of keys, values. A head follows
 * the other, `key_head` or `value_head` bytes apart; sums are s32 [kv_heads][capacity]. */
typedef struct {
    size_t key_head, value_head, sums, values, bytes;
} CacheLayout;

INLINE int padded(int n, int to) { return (n + to - 1) / to * to; }

INLINE CacheLayout cache_layout(const Attention *p) {
    CacheLayout l;
    size_t capacity = (size_t)p->capacity;
    l.key_head = capacity * (size_t)padded(p->head_dim, 4);
    l.value_head = capacity * (size_t)padded(p->value_dim, 16);
    l.sums = l.key_head * (size_t)p->kv_heads;
    l.values = l.sums + capacity * (size_t)p->kv_heads * sizeof(s32);
    l.bytes = l.values + l.value_head * (size_t)p->kv_heads + 64;
    return l;
}

/* Bytes that a thread needs at `Run.scores`, a multiple of 64. */
INLINE size_t attention_scratch(int capacity) {
    size_t bytes = (size_t)capacity * GROUP * (sizeof(s32) + 2) + 64;
    return (bytes + 63) / 64 * 64;
}

/* Write key and value of one position, all heads. */
INLINE void cache_write(const Attention *p, u8 *cache, int position, const u8 *k, const u8 *v) {
    CacheLayout l = cache_layout(p);
    int dim = p->head_dim, groups4 = padded(dim, 4) / 4;
    for (int h = 0; h < p->kv_heads; h++, k += dim, v += p->value_dim) {
        u8 *keys = cache + (size_t)h * l.key_head + (size_t)(position / 16) * (size_t)groups4 * 64 + (size_t)(position % 16) * 4;
        u8 *values = cache + l.values + (size_t)h * l.value_head + (size_t)(position / 4) * 64 + (size_t)(position % 4);
        s32 sum = 0;
        for (int d = 0; d < dim; d++) {
            keys[d / 4 * 64 + d % 4] = k[d] ^ 128;
            sum += k[d] - 128;
        }
        for (int d = 0; d < p->value_dim; d++)
            values[(size_t)(d / 16) * (size_t)(p->capacity / 4) * 64 + (size_t)(d % 16) * 4] = v[d] ^ 128;
        ((s32 *)(cache + l.sums))[(size_t)h * (size_t)p->capacity + (size_t)position] = sum;
    }
}

/* Read them back. */
INLINE void cache_read(const Attention *p, const u8 *cache, int position, u8 *k, u8 *v) {
    CacheLayout l = cache_layout(p);
    int dim = p->head_dim, groups4 = padded(dim, 4) / 4;
    for (int h = 0; h < p->kv_heads; h++, k += dim, v += p->value_dim) {
        const u8 *keys = cache + (size_t)h * l.key_head + (size_t)(position / 16) * (size_t)groups4 * 64 + (size_t)(position % 16) * 4;
        const u8 *values = cache + l.values + (size_t)h * l.value_head + (size_t)(position / 4) * 64 + (size_t)(position % 4);
        for (int d = 0; d < dim; d++) k[d] = keys[d / 4 * 64 + d % 4] ^ 128;
        for (int d = 0; d < p->value_dim; d++)
            v[d] = values[(size_t)(d / 16) * (size_t)(p->capacity / 4) * 64 + (size_t)(d % 16) * 4] ^ 128;
    }
}

#endif
