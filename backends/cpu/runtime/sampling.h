/* Choosing the next token as mqc's Python does (mqc/runtime/sampling.py). The only file with floating point. */
#ifndef MQC_SAMPLING_H
#define MQC_SAMPLING_H

#include "mqc.h"
#include "prelude.h"

/* PCG64 (XSL-RR 128/64, M. O'Neill, HMC-CS-2014-0905) as NumPy seeds it: high and low half of each number. */
typedef struct {
    u64 state[2], increment[2];
} Generator;

typedef struct {
    double value;
    s32 id;
} Candidate;

typedef struct {
    mqc_sampling how;
    Generator generator;
} Sampler;

/* Whether all values are in their ranges. */
int mqc_sampling_is_valid(const mqc_sampling *how);

/* Whether it takes `candidates` and `seen`. */
int mqc_sampling_is_greedy(const mqc_sampling *how);

void mqc_generator_seed(Generator *g, u64 seed);

/* candidates: room for [vocabulary], seen: for [vocabulary] zeros; tokens: those that the sequence has. */
s32 mqc_sampler_choose(Sampler *s, const s32 *logits, s32 vocabulary, const s32 *tokens, size_t count,
                       Candidate *candidates, u8 *seen);

#endif
