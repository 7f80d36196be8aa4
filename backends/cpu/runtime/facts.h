/* What the export writes of a program besides its code (facts.c). */
#ifndef MQC_FACTS_H
#define MQC_FACTS_H

#include "prelude.h"
#include "sha256.h"

/* A constant that the program reads. The values of those whose element type is stated must be in [low, high]; for the
 * others any byte will do. */
typedef struct {
    u64 bytes;
    enum { ANY, S8, S16, S32, S64 } type;
    s64 low, high;
} Constant;

typedef struct {
    s32 vocabulary, context;    /* positions, those of the prefix among them */
    s32 prefix;                 /* positions that every sequence begins with */
    double logit_scale, logit_cap; /* logit_cap: 0 if there is none */
    u64 count;                  /* of constants */
    const Constant *constants;  /* [count] */
    u64 prefix_at;              /* first of the constants with rows of a prefix, by cache; if there is one */
    u64 tokenizer_bytes;        /* of tokenizer.bin; 0: there is none */
    u8 tokenizer[SHA256_BYTES]; /* its hash */
    u8 weights[SHA256_BYTES];   /* hash that weights.bin states */
    u8 program[SHA256_BYTES];   /* tells program, weights and tokenizer from others */
} Facts;

extern const Facts mqc_facts;

#endif
