/* Entry points that the Python side calls. */
#include <stdlib.h>

#include "attention.h"

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    Pool pool;
    Run run;
    const Program *program;
    u8 *memory;
    u8 *cache[]; /* [layers] */
} Engine;

EXPORT void mqc_close(Engine *e) {
    if (!e) return;
    pool_stop(&e->pool);
    for (int i = 0; i < e->program->layers; i++) free(e->cache[i]);
    free(e->memory);
    free(e);
}

/* `constants`: addresses of weights and derived tables. NULL if memory or threads run out. */
EXPORT Engine *mqc_open(const Program *program, const void *const *constants, int threads) {
    Engine *e = calloc(1, sizeof *e + (size_t)program->layers * sizeof *e->cache);
    if (!e) return NULL;
    e->program = program;
    int capacity = 0;
    for (int i = 0; i < program->layers; i++) {
        const Attention *a = &program->attention[i];
        e->cache[i] = calloc(1, cache_layout(a).bytes);
        if (a->capacity > capacity) capacity = a->capacity;
        if (!e->cache[i]) return mqc_close(e), NULL;
    }
    size_t arena = CHUNK * program->arena_bytes + 64, planes = 2 * CHUNK * program->plane_bytes + 64;
    size_t scores = attention_scratch(capacity);
    e->memory = calloc(1, arena + planes + scores * (size_t)threads);
    if (!e->memory || pool_start(&e->pool, threads, program->run)) return mqc_close(e), NULL;
    e->run.constants = constants;
    e->run.arena = e->memory;
    e->run.planes = e->memory + arena;
    e->run.cache = e->cache;
    u8 *scratch = e->run.planes + planes;
    for (int i = 0; i < threads; i++) e->pool.workers[i].run.scores = scratch + scores * (size_t)i;
    return e;
}

/* Put key and value of all heads into a layer's cache at a position. */
EXPORT void mqc_write_cache(Engine *e, int layer, int position, const u8 *k, const u8 *v) {
    cache_write(&e->program->attention[layer], e->cache[layer], position, k, v);
}

/* Run tokens (at most CHUNK) at `position`; logits of tokens first_row... are written, in rows. */
EXPORT void mqc_forward(Engine *e, const s32 *ids, int tokens, int position, int first_row, s32 *logits) {
    e->run.ids = ids;
    e->run.tokens = tokens;
    e->run.position = position;
    e->run.first_row = first_row;
    e->run.logits = logits;
    pool_call(&e->pool, &e->run);
}

/* Where values lie after a call, for debugging. */
EXPORT u8 *mqc_arena(Engine *e) { return e->run.arena; }
