/* What all headers of mqc share: status, and where memory comes from. */
#ifndef MQC_COMMON_H
#define MQC_COMMON_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MQC_API __attribute__((visibility("default")))

typedef enum mqc_status {
    MQC_OK = 0,
    MQC_ERROR_ARGUMENT = 1,   /* an argument is not what the function takes */
    MQC_ERROR_FILE = 2,       /* a file cannot be read or written */
    MQC_ERROR_DAMAGED = 3,    /* sizes, hashes or values of a file are not what they should be */
    MQC_ERROR_MEMORY = 4,     /* memory or threads ran out */
    MQC_ERROR_FULL = 5,       /* the context, or a buffer of the caller, is too small */
    MQC_ERROR_CANCELLED = 6,
    MQC_ERROR_UNSUPPORTED = 7 /* the model, or this CPU, has no such part */
} mqc_status;

/* An English sentence without an end mark, for every number. */
MQC_API const char *mqc_status_text(mqc_status status);

/* Where memory comes from; instead of one, NULL: calloc and free. Blocks are aligned as malloc aligns them, to 16
 * bytes. Several threads may call at once. */
typedef struct mqc_allocator {
    void *(*allocate)(void *context, size_t bytes); /* NULL if there is none */
    void (*release)(void *context, void *memory);
    void *context;
} mqc_allocator;

#ifdef __cplusplus
}
#endif
#endif
