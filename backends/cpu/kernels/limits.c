/* What the machine can do at most: bytes read per second, s8 multiply-accumulates per second. */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dot.h"

static u64 now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

typedef struct {
    const u64 *data;
    size_t words;
    u64 sum, rounds;
} Work;

static void *read_all(void *argument) {
    Work *w = argument;
    u64 s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (size_t i = 0; i + 4 <= w->words; i += 4) {
        s0 += w->data[i], s1 += w->data[i + 1], s2 += w->data[i + 2], s3 += w->data[i + 3];
    }
    w->sum = s0 + s1 + s2 + s3;
    return NULL;
}

/* Tiles of rows and weights that stay in the first-level cache, by the kernel that programs use. */
static void *multiply(void *argument) {
    Work *w = argument;
    _Alignas(64) static const u8 weights[4 * 64 * 64];
    _Alignas(64) u8 x[4 * 256 + 64];
    s32 acc[TILE_ROWS * TILE_BLOCKS * 16];
    memset(x, 3, sizeof x);
    static const s32 sums[4 * 16];
    Packed packed = {weights, 64 * 64, 64, 0, 0, 0, sums};
    for (u64 i = 0; i < w->rounds; i++) {
        dot_s8(4, 4, x, 256, &packed, 0, acc);
        w->sum += (u64)acc[0];
    }
    return NULL;
}

static u64 run_all(void *(*body)(void *), Work *work, int threads) {
    pthread_t ids[256];
    u64 start = now_ns();
    for (int i = 1; i < threads; i++)
        if (pthread_create(&ids[i], NULL, body, &work[i])) return 0;
    body(&work[0]);
    for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
    return now_ns() - start;
}

/* Nanoseconds to read `bytes` once with all threads, best of `tries`; 0 if memory runs out. */
u64 mqc_read_ns(u64 bytes, int threads, int tries) {
    u64 best = 0, *data = malloc(bytes);
    if (!data) return 0;
    memset(data, 1, bytes);
    size_t part = (size_t)(bytes / 8 / (u64)threads);
    for (int t = 0; t < tries; t++) {
        Work work[256];
        for (int i = 0; i < threads; i++) work[i] = (Work){data + (size_t)i * part, part, 0, 0};
        u64 ns = run_all(read_all, work, threads);
        if (!best || ns < best) best = ns;
    }
    free(data);
    return best;
}

/* Nanoseconds for `rounds` tiles of 4 x 64 x 256 multiply-accumulates on every thread, best of `tries`. */
u64 mqc_multiply_ns(u64 rounds, int threads, int tries) {
    u64 best = 0;
    for (int t = 0; t < tries; t++) {
        Work work[256];
        for (int i = 0; i < threads; i++) work[i] = (Work){NULL, 0, 0, rounds};
        u64 ns = run_all(multiply, work, threads);
        if (!best || ns < best) best = ns;
    }
    return best;
}
