#include "sampling.h"

#include <math.h>
#include <string.h>

#include "facts.h"

__extension__ typedef unsigned __int128 u128;

static u128 joined(const u64 halves[2]) { return (u128)halves[0] << 64 | halves[1]; }
static void split(u128 value, u64 halves[2]) { halves[0] = (u64)(value >> 64), halves[1] = (u64)value; }

static u64 next_u64(Generator *g) {
    static const u64 FACTOR[2] = {0x2360ed051fc65da4, 0x4385df649fccf645};
    split(joined(g->state) * joined(FACTOR) + joined(g->increment), g->state);
    u64 mixed = g->state[0] ^ g->state[1];
    int turn = (int)(g->state[0] >> 58);
    return mixed >> turn | mixed << (-turn & 63);
}

/* In [0, 1), 53 bits. */
static double next_uniform(Generator *g) { return (double)(next_u64(g) >> 11) * 0x1p-53; }

static u32 hash_word(u32 value, u32 *factor, u32 step) {
    value ^= *factor;
    *factor *= step;
    value *= *factor;
    return value ^ value >> 16;
}

/* numpy.random.SeedSequence of one number: https://www.pcg-random.org/posts/developing-a-seed_seq-alternative.html */
void mqc_generator_seed(Generator *g, u64 seed) {
    u32 pool[4] = {(u32)seed, (u32)(seed >> 32), 0, 0}, factor = 0x43b0d7e5;
    for (int i = 0; i < 4; i++) pool[i] = hash_word(pool[i], &factor, 0x931e8875);
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++)
            if (from != to) {
                u32 mixed = 0xca01f9dd * pool[to] - 0x4973f715 * hash_word(pool[from], &factor, 0x931e8875);
                pool[to] = mixed ^ mixed >> 16;
            }
    u64 words[4];
    factor = 0x8b51f9dd;
    for (int i = 0; i < 4; i++) {
        u32 low = hash_word(pool[2 * i % 4], &factor, 0x58f38ded);
        words[i] = (u64)hash_word(pool[(2 * i + 1) % 4], &factor, 0x58f38ded) << 32 | low;
    }
    split(joined(words + 2) << 1 | 1, g->increment);
    split(joined(g->increment) + joined(words), g->state);
    next_u64(g);
}

int mqc_sampling_is_valid(const mqc_sampling *how) {
    return how->size == sizeof *how && how->temperature >= 0 && how->temperature < INFINITY && how->top_k >= 0 &&
           how->top_p >= 0 && how->top_p <= 1 && how->min_p >= 0 && how->min_p <= 1 && how->repetition_penalty >= 0 &&
           how->repetition_penalty < INFINITY;
}

static double penalty(const mqc_sampling *how) { return how->repetition_penalty > 0 ? how->repetition_penalty : 1; }

int mqc_sampling_is_greedy(const mqc_sampling *how) { return how->temperature == 0 && penalty(how) == 1; }

/* A heap of candidates, the likeliest first; those that were taken out lie behind the others, in reverse. */
typedef struct {
    Candidate *all;
    size_t count, taken;
} Heap;

static int before(const Candidate *a, const Candidate *b) {
    return a->value > b->value || (a->value == b->value && a->id < b->id);
}

static void sink(const Heap *h, size_t at) {
    size_t end = h->count - h->taken;
    Candidate moved = h->all[at];
    for (size_t child; (child = 2 * at + 1) < end; at = child) {
        if (child + 1 < end && before(&h->all[child + 1], &h->all[child])) child++;
        if (!before(&h->all[child], &moved)) break;
        h->all[at] = h->all[child];
    }
    h->all[at] = moved;
}

/* The i-th likeliest. */
static const Candidate *ranked(Heap *h, size_t i) {
    while (h->taken <= i) {
        Candidate first = h->all[0];
        h->taken++;
        h->all[0] = h->all[h->count - h->taken];
        h->all[h->count - h->taken] = first;
        sink(h, 0);
    }
    return &h->all[h->count - 1 - i];
}

/* Its probability, relative to the likeliest one's. */
static double weight(Heap *h, size_t i) { return exp(ranked(h, i)->value - ranked(h, 0)->value); }

static s32 draw(Sampler *s, Heap *h) {
    const mqc_sampling *how = &s->how;
    size_t kept = h->count;
    double total = 0, sum = 0;
    if (how->top_k && (size_t)how->top_k < kept) kept = (size_t)how->top_k;
    double largest = ranked(h, 0)->value;
    if (kept < h->count)
        for (size_t i = 0; i < kept; i++) total += weight(h, i);
    else
        for (size_t i = 0; i < kept; i++) total += exp(h->all[i].value - largest);
    if (how->top_p > 0) {
        size_t i = 0;
        while (i < kept && (sum += weight(h, i)) < how->top_p * total) i++;
        if (i < kept) kept = i + 1, total = sum;
    }
    if (how->min_p > 0) {
        size_t i = 1;
        for (sum = 1; i < kept && weight(h, i) >= how->min_p; i++) sum += weight(h, i);
        kept = i, total = sum;
    }
    double wanted = next_uniform(&s->generator) * total;
    sum = 0;
    for (size_t i = 0; i < kept; i++)
        if ((sum += weight(h, i)) > wanted) return ranked(h, i)->id;
    return ranked(h, kept - 1)->id; /* where rounding left nothing */
}

s32 mqc_sampler_choose(Sampler *s, const s32 *logits, s32 vocabulary, const s32 *tokens, size_t count,
                       Candidate *candidates, u8 *seen) {
    s32 best = 0;
    if (mqc_sampling_is_greedy(&s->how)) {
        for (s32 i = 1; i < vocabulary; i++)
            if (logits[i] > logits[best]) best = i;
        return best;
    }
    double scale = mqc_facts.logit_scale, cap = mqc_facts.logit_cap;
    for (s32 i = 0; i < vocabulary; i++) {
        double value = logits[i];
        if (cap > 0) value = tanh(value * (scale / cap)) * (cap / scale);
        candidates[i] = (Candidate){value, i};
    }
    double by = penalty(&s->how), inverse = 1 / by;
    if (by != 1) {
        for (size_t i = 0; i < count; i++) {
            Candidate *c = &candidates[tokens[i]];
            if (!seen[c->id]) c->value *= c->value < 0 ? by : inverse;
            seen[c->id] = 1;
        }
        for (size_t i = 0; i < count; i++) seen[tokens[i]] = 0;
    }
    for (s32 i = 1; i < vocabulary; i++)
        if (candidates[i].value > candidates[best].value) best = i;
    if (s->how.temperature == 0) return best;
    /* Dividing last keeps 0 / temperature at 0, however small the temperature is. */
    double largest = candidates[best].value;
    for (s32 i = 0; i < vocabulary; i++)
        candidates[i].value = (candidates[i].value - largest) * scale / s->how.temperature;
    Heap h = {candidates, (size_t)vocabulary, 0};
    for (size_t i = h.count / 2; i-- > 0;) sink(&h, i);
    return draw(s, &h);
}
