/* A program's sequence: its cache, its threads, and memory for what it computes. */
#ifndef MQC_ENGINE_H
#define MQC_ENGINE_H

#include "kernels.h"
#include "mqc_common.h"

/* Python calls these functions. In a library for apps they are not to be seen. */
#ifdef MQC_EXPORTED
#define ENGINE_API
#else
#define ENGINE_API MQC_API
#endif

typedef struct Engine Engine;

/* `constants`: addresses of weights and derived tables; `memory`: NULL or an allocator, copied. NULL if memory or
 * threads run out. */
ENGINE_API Engine *mqc_engine_open(const Program *program, const void *const *constants, int threads,
                                   const mqc_allocator *memory);
ENGINE_API void mqc_engine_close(Engine *e);

/* Run tokens (at most CHUNK) at `position`; logits of tokens first_row... are written, in rows. */
ENGINE_API void mqc_engine_run(Engine *e, const s32 *ids, int tokens, int position, int first_row, s32 *logits);

/* Put rows into a cache, from a position on; take them out. first: keys [count][kv_heads][head_dim], second: values;
 * or first: rows of a convolution. A state of fixed size is one row, at position 0. */
ENGINE_API void mqc_engine_write(Engine *e, int cache, int position, int count, const u8 *first, const u8 *second);
ENGINE_API void mqc_engine_read(Engine *e, int cache, int position, int count, u8 *first, u8 *second);

/* Where values lie after a call, for debugging. */
ENGINE_API u8 *mqc_engine_arena(Engine *e);

/* How many caches there are: those of attention, of convolutions, then states of fixed size. */
INLINE int caches(const Program *p) { return p->layers + p->convolutions + p->recurrences; }

/* Whether a cache is a state of fixed size, that of the last position alone. */
INLINE int is_fixed(const Program *p, int cache) { return cache >= p->layers + p->convolutions; }

INLINE int keeps_fixed(const Program *p) { return p->recurrences > 0; }

/* Bytes of one position in a cache, as `mqc_engine_write` takes them. */
typedef struct {
    size_t first, second;
} RowBytes;
INLINE RowBytes row_bytes(const Program *p, int cache) {
    if (cache >= p->layers) return (RowBytes){p->rows[cache - p->layers].row_bytes, 0};
    const Attention *a = &p->attention[cache];
    return (RowBytes){(size_t)a->kv_heads * (size_t)a->head_dim, (size_t)a->kv_heads * (size_t)a->value_dim};
}

#endif
