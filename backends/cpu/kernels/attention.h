/* The cache of keys and values, and the scratch memory of attention. */
#ifndef MQC_ATTENTION_H
#define MQC_ATTENTION_H

#include "kernels.h"

/* Bytes of one layer's cache, and where its parts begin: keys, sums of keys, values. A head follows
 * the other, `key_head` or `value_head` bytes apart; sums are s32 [kv_heads][capacity]. */
typedef struct {
    size_t key_head, value_head, sums, values, bytes;
} CacheLayout;

CacheLayout cache_layout(const Attention *p);

/* Write key and value of one position, all heads. */
void cache_write(const Attention *p, u8 *cache, int position, const u8 *k, const u8 *v);

/* Bytes that a thread needs at `Run.scores`, a multiple of 64. */
size_t attention_scratch(int capacity);

#endif
