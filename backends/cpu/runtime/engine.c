#include "engine.h"

#include <string.h>

#include "attention.h"
#include "memory.h"

struct Engine {
    Pool pool;
    Run run;
    const Program *program;
    Worker *workers;
    u8 *memory;
    mqc_allocator hooks;
    const mqc_allocator *allocator; /* NULL, or of `hooks` */
    u8 *cache[];                    /* [caches] */
};

void mqc_engine_close(Engine *e) {
    if (!e) return;
    mqc_pool_stop(&e->pool);
    for (int i = 0; i < caches(e->program); i++) memory_release(e->allocator, e->cache[i]);
    memory_release(e->allocator, e->workers);
    memory_release(e->allocator, e->memory);
    mqc_allocator hooks = e->hooks;
    memory_release(e->allocator ? &hooks : NULL, e);
}

Engine *mqc_engine_open(const Program *program, const void *const *constants, int threads,
                        const mqc_allocator *memory) {
    Engine *e = memory_zeroed(memory, sizeof *e + (size_t)caches(program) * sizeof *e->cache);
    if (!e) return NULL;
    e->program = program;
    if (memory) {
        e->hooks = *memory;
        e->allocator = &e->hooks;
    }
    int capacity = 0;
    for (int i = 0; i < program->layers; i++) {
        const Attention *a = &program->attention[i];
        e->cache[i] = memory_zeroed(memory, cache_layout(a).bytes);
        if (a->capacity > capacity) capacity = a->capacity;
        if (!e->cache[i]) return mqc_engine_close(e), NULL;
    }
    for (int i = 0; i < caches(program) - program->layers; i++) {
        const Rows *rows = &program->rows[i];
        u8 *cache = memory_zeroed(memory, rows->row_bytes * (size_t)rows->capacity);
        if (!cache) return mqc_engine_close(e), NULL;
        e->cache[program->layers + i] = cache;
    }
    size_t arena = CHUNK * program->arena_bytes + 64, planes = 2 * CHUNK * program->plane_bytes + 64;
    size_t scores = attention_scratch(capacity);
    if (program->tile_bytes + 64 > scores) scores = program->tile_bytes + 64;
    e->memory = memory_zeroed(memory, arena + planes + scores * (size_t)threads);
    e->workers = memory_zeroed(memory, (size_t)threads * sizeof *e->workers);
    if (!e->memory || !e->workers) return mqc_engine_close(e), NULL;
    if (mqc_pool_start(&e->pool, e->workers, threads, program->run)) return mqc_engine_close(e), NULL;
    e->run.constants = constants;
    e->run.arena = e->memory;
    e->run.planes = e->memory + arena;
    e->run.cache = e->cache;
    u8 *scratch = e->run.planes + planes;
    for (int i = 0; i < threads; i++) e->workers[i].run.scores = scratch + scores * (size_t)i;
    return e;
}

void mqc_engine_run(Engine *e, const s32 *ids, int tokens, int position, int first_row, s32 *logits) {
    e->run.ids = ids;
    e->run.tokens = tokens;
    e->run.position = position;
    e->run.first_row = first_row;
    e->run.logits = logits;
    mqc_pool_call(&e->pool, &e->run);
}

void mqc_engine_write(Engine *e, int cache, int position, int count, const u8 *first, const u8 *second) {
    RowBytes row = row_bytes(e->program, cache);
    if (cache >= e->program->layers) {
        memcpy(e->cache[cache] + row.first * (size_t)position, first, row.first * (size_t)count);
        return;
    }
    for (int i = 0; i < count; i++, first += row.first, second += row.second)
        cache_write(&e->program->attention[cache], e->cache[cache], position + i, first, second);
}

void mqc_engine_read(Engine *e, int cache, int position, int count, u8 *first, u8 *second) {
    RowBytes row = row_bytes(e->program, cache);
    if (cache >= e->program->layers) {
        memcpy(first, e->cache[cache] + row.first * (size_t)position, row.first * (size_t)count);
        return;
    }
    for (int i = 0; i < count; i++, first += row.first, second += row.second)
        cache_read(&e->program->attention[cache], e->cache[cache], position + i, first, second);
}

u8 *mqc_engine_arena(Engine *e) { return e->run.arena; }
