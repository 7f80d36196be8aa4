/* All threads run the same program, with a barrier after each op; between calls they sleep. */
#ifndef MQC_THREADS_H
#define MQC_THREADS_H

#include <pthread.h>
#include <stdatomic.h>

#include "prelude.h"

/* Wait until all threads of the run are here. */
void mqc_barrier(const Run *r);
INLINE void barrier(const Run *r) {
    if (r->threads > 1) mqc_barrier(r);
}

typedef struct {
    _Atomic int arrived;
    _Atomic int round;
} Barrier;

typedef struct Pool Pool;
typedef struct {
    Pool *pool;
    Run run;
    pthread_t thread;
} Worker;

struct Pool {
    int threads;
    Worker *workers;
    Barrier barrier;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    u64 call; /* number of calls begun */
    int stop;
    void (*program)(Run *);
};

/* workers: zeroed, [threads]; worker 0 is the caller's thread. Returns 0, or -1 if a thread cannot be started. */
int mqc_pool_start(Pool *pool, Worker *workers, int threads, void (*program)(Run *));
void mqc_pool_stop(Pool *pool); /* one that did not start is left alone */

/* Run the program on all threads; `common` holds what they share. The program ends in a barrier. */
void mqc_pool_call(Pool *pool, const Run *common);

#endif
