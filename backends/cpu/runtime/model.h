/* A model that is open. */
#ifndef MQC_MODEL_H
#define MQC_MODEL_H

#include <stdatomic.h>

#include "facts.h"
#include "instruction_sets.h"
#include "memory.h"
#include "mqc.h"

typedef struct {
    const u8 *data; /* NULL: not open */
    size_t bytes;
} MappedFile;

struct mqc_model {
    MappedFile weights, tables; /* weights.bin, tokenizer.bin */
    const void **constants;
    mqc_tokenizer *tokenizer; /* NULL: none */
    const InstructionSet *set;
    mqc_allocator hooks;
    const mqc_allocator *allocator; /* NULL, or of `hooks` */
    atomic_int sessions;            /* that are open */
};

#endif
