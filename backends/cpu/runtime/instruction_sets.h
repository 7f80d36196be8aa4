/* The instruction sets that a library holds. */
#ifndef MQC_INSTRUCTION_SETS_H
#define MQC_INSTRUCTION_SETS_H

#include "kernels.h"

typedef struct {
    const char *name;
    int (*runs_here)(void);
    const Program *program;
} InstructionSet;

/* Best first; the end has no name. */
extern const InstructionSet mqc_instruction_sets[];

#endif
