/* SHA-256: FIPS 180-4. */
#ifndef MQC_SHA256_H
#define MQC_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_BYTES = 32 };

typedef struct {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} Sha256;

void mqc_sha256_start(Sha256 *s);
void mqc_sha256_add(Sha256 *s, const void *data, size_t bytes);
void mqc_sha256_finish(Sha256 *s, uint8_t hash[SHA256_BYTES]);

#endif
