/* Entry points that the Python side calls. `program`, `ATTENTION`, `LAYERS`, `ARENA_BYTES` and
 * `PLANE_BYTES` come from the generated part. */

typedef struct {
    Pool pool;
    Run run;
    u8 *memory;
    u8 *cache[LAYERS + 1];
} Engine;

void mqc_close(Engine *e) {
    if (!e) return;
    pool_stop(&e->pool);
    for (int i = 0; i < LAYERS; i++) free(e->cache[i]);
    free(e->memory);
    free(e);
}

/* `constants`: addresses of weights and derived tables. NULL if memory or threads run out. */
Engine *mqc_open(const void *const *constants, int threads) {
    Engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    size_t capacity = 0;
    for (int i = 0; i < LAYERS; i++) {
        e->cache[i] = calloc(1, cache_layout(&ATTENTION[i]).bytes);
        if ((size_t)ATTENTION[i].capacity > capacity) capacity = (size_t)ATTENTION[i].capacity;
        if (!e->cache[i]) return mqc_close(e), NULL;
    }
    size_t scores = capacity * GROUP * (sizeof(s32) + 2) + 64;
    scores = (scores + 63) / 64 * 64;
    e->memory = calloc(1, (size_t)CHUNK * (ARENA_BYTES + 2 * PLANE_BYTES) + 128 + scores * (size_t)threads);
    if (!e->memory || pool_start(&e->pool, threads, program)) return mqc_close(e), NULL;
    e->run.constants = constants;
    e->run.arena = e->memory;
    e->run.planes = e->memory + (size_t)CHUNK * ARENA_BYTES + 64;
    e->run.cache = e->cache;
    u8 *scratch = e->run.planes + (size_t)CHUNK * 2 * PLANE_BYTES + 64;
    for (int i = 0; i < threads; i++) e->pool.workers[i].run.scores = scratch + scores * (size_t)i;
    return e;
}

/* Put key and value of all heads into a layer's cache at a position. */
void mqc_write_cache(Engine *e, int layer, int position, const u8 *k, const u8 *v) {
    cache_write(&ATTENTION[layer], e->cache[layer], position, k, v);
}

/* Run tokens (at most CHUNK) at `position`; logits of tokens first_row... are written, in rows. */
void mqc_forward(Engine *e, const s32 *ids, int tokens, int position, int first_row, s32 *logits) {
    e->run.ids = ids;
    e->run.tokens = tokens;
    e->run.position = position;
    e->run.first_row = first_row;
    e->run.logits = logits;
    pool_call(&e->pool, &e->run);
}

/* Where values lie after a call, for debugging. */
u8 *mqc_arena(Engine *e) { return e->run.arena; }
