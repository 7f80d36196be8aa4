/* Memory from the app's allocator, or from the C library. */
#ifndef MQC_MEMORY_H
#define MQC_MEMORY_H

#include <stdlib.h>
#include <string.h>

#include "mqc_common.h"

/* Zeroed; NULL if there is none. */
static inline void *memory_zeroed(const mqc_allocator *from, size_t bytes) {
    if (!from) return calloc(1, bytes);
    void *memory = from->allocate(from->context, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

static inline void memory_release(const mqc_allocator *from, void *memory) {
    if (!memory) return;
    if (from)
        from->release(from->context, memory);
    else
        free(memory);
}

#endif
