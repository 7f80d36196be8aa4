/* Byte pair encoding: symbols of a piece, merged by rank with a heap. */
#include "tokenizer.h"

typedef struct {
    int32_t id;            /* NONE: merged into the one in front */
    uint32_t before, next; /* numbers of symbols; UINT32_MAX at the ends */
} Symbol;

static int32_t find_key(const mqc_tokenizer *t, const uint8_t *text, uint32_t bytes) {
    uint32_t slot = hash_bytes(text, bytes);
    for (;; slot++) { /* half of the slots are empty */
        uint32_t key = t->key_slots[slot & t->key_mask];
        if (key == UINT32_MAX) return NONE;
        Text found = string(&t->keys, key);
        if (found.bytes == bytes && !memcmp(found.data, text, bytes)) return t->key_ids[key];
    }
}

static int find_merge(const mqc_tokenizer *t, int32_t left, int32_t right, uint32_t *rank) {
    uint32_t slot = hash_pair(left, right);
    for (;; slot++) {
        *rank = t->merge_slots[slot & t->merge_mask];
        if (*rank == UINT32_MAX) return 0;
        if (t->merges[*rank].left == left && t->merges[*rank].right == right) return 1;
    }
}

/* ---- heap: least key first; a key is a rank, and below it a symbol's number */

static void push(uint64_t *heap, size_t *count, uint64_t key) {
    size_t at = (*count)++;
    for (; at && heap[(at - 1) / 2] > key; at = (at - 1) / 2) {
        heap[at] = heap[(at - 1) / 2];
        WORK();
    }
    heap[at] = key;
}

static uint64_t pop(uint64_t *heap, size_t *count) {
    uint64_t least = heap[0], key = heap[--*count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= *count) break;
        if (child + 1 < *count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[at] = heap[child];
        at = child;
        WORK();
    }
    heap[at] = key;
    return least;
}

/* ---- symbols */

static int add_symbol(Work *work, int32_t id) {
    uint32_t number = (uint32_t)(work->symbols.used / sizeof(Symbol));
    Symbol symbol = {id, number - 1, number + 1};
    return mqct_buffer_add(&work->t->allocator, &work->symbols, &symbol, sizeof symbol);
}

/* As the library: what is unknown waits for the next known character, or, if it is not fused, for the next
 * unknown one. Bytes do not end the waiting. */
static int add_characters(Work *work, const uint8_t *text, uint32_t bytes) {
    const mqc_tokenizer *t = work->t;
    int waits = 0;
    for (uint32_t at = 0; at < bytes;) {
        uint32_t begin = at;
        WORK();
        int32_t id;
        if (t->settings.byte_level) {
            id = t->byte_ids[text[at++]];
        } else {
            next_code_point(text, &at);
            id = find_key(t, text + begin, at - begin);
        }
        if (id != NONE) {
            if (waits && !add_symbol(work, t->settings.unknown)) return 0;
            waits = 0;
            if (!add_symbol(work, id)) return 0;
            continue;
        }
        int all = !t->settings.byte_level;
        for (uint32_t i = begin; i < at; i++) all = all && t->byte_ids[text[i]] != NONE;
        if (all) {
            for (uint32_t i = begin; i < at; i++)
                if (!add_symbol(work, t->byte_ids[text[i]])) return 0;
        } else if (t->settings.unknown != NONE) {
            if (waits && !t->settings.fuse_unknown && !add_symbol(work, t->settings.unknown)) return 0;
            waits = 1;
        }
    }
    return !waits || add_symbol(work, t->settings.unknown);
}

static void propose(const mqc_tokenizer *t, const Symbol *symbols, uint32_t left, uint64_t *heap,
                    size_t *waiting) {
    uint32_t rank;
    if (find_merge(t, symbols[left].id, symbols[symbols[left].next].id, &rank))
        push(heap, waiting, (uint64_t)rank << 32 | left);
}

static void merge_symbols(const mqc_tokenizer *t, Symbol *symbols, uint64_t *heap) {
    size_t waiting = 0;
    for (uint32_t i = 0; symbols[i].next != UINT32_MAX; i++) propose(t, symbols, i, heap, &waiting);
    while (waiting) {
        uint64_t key = pop(heap, &waiting);
        uint32_t left = (uint32_t)key, rank;
        Symbol *symbol = symbols + left;
        if (symbol->id == NONE || symbol->next == UINT32_MAX) continue;
        /* What was proposed may be out of date, and is carried out if it still makes the same token. */
        Symbol *right = symbols + symbol->next;
        int32_t made = t->merges[key >> 32].made;
        if (!find_merge(t, symbol->id, right->id, &rank) || t->merges[rank].made != made) continue;
        symbol->id = made;
        symbol->next = right->next;
        right->id = NONE;
        if (symbol->next != UINT32_MAX) symbols[symbol->next].before = left;
        if (symbol->before != UINT32_MAX) propose(t, symbols, symbol->before, heap, &waiting);
        if (symbol->next != UINT32_MAX) propose(t, symbols, left, heap, &waiting);
    }
}

mqc_status mqct_merge_piece(Work *work, const uint8_t *text, uint32_t bytes) {
    const mqc_tokenizer *t = work->t;
    const mqc_allocator *a = &t->allocator;
    if (t->settings.whole_pieces) {
        int32_t id = find_key(t, text, bytes);
        if (id != NONE) return mqct_buffer_add(a, &work->ids, &id, sizeof id) ? MQC_OK : MQC_ERROR_MEMORY;
    }
    work->symbols.used = work->heap.used = 0;
    if (!add_characters(work, text, bytes)) return MQC_ERROR_MEMORY;
    size_t count = work->symbols.used / sizeof(Symbol);
    if (!count) return MQC_OK;
    /* Each pair is proposed once in the beginning, and two more for each of less than `count` merges. */
    if (!mqct_buffer_grow(a, &work->heap, count * 3 * sizeof(uint64_t))) return MQC_ERROR_MEMORY;
    Symbol *symbols = (Symbol *)(void *)work->symbols.data;
    symbols[count - 1].next = UINT32_MAX;
    merge_symbols(t, symbols, (uint64_t *)(void *)work->heap.data);
    for (uint32_t i = 0; i != UINT32_MAX; i = symbols[i].next)
        if (!mqct_buffer_add(a, &work->ids, &symbols[i].id, sizeof symbols[i].id)) return MQC_ERROR_MEMORY;
    return MQC_OK;
}
