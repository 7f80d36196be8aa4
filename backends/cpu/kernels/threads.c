/* Threads that wait by spinning within a call and sleep between calls. */
#include "threads.h"

#include <sched.h>
#include <string.h>

INLINE void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* waits as long as x86's pause does; `yield` waits for nothing on most cores */
#endif
}

void mqc_barrier(const Run *r) {
    /* Once the last thread is here, the next call may change the run: nothing of it is read after arriving. */
    int threads = r->threads;
    Barrier *b = r->barrier;
    int round = atomic_load_explicit(&b->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&b->round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&b->round, memory_order_acquire) == round; spins++) {
        if (spins < 4000)
            pause_briefly();
        else
            sched_yield();
    }
}

static void *worker_main(void *argument) {
    Worker *w = argument;
    Pool *pool = w->pool;
    u64 seen = 0;
    for (;;) {
        pthread_mutex_lock(&pool->lock);
        while (pool->call == seen && !pool->stop) pthread_cond_wait(&pool->wake, &pool->lock);
        seen = pool->call;
        int stop = pool->stop;
        pthread_mutex_unlock(&pool->lock);
        if (stop) return NULL;
        pool->program(&w->run);
    }
}

int mqc_pool_start(Pool *pool, Worker *workers, int threads, void (*program)(Run *)) {
    memset(pool, 0, sizeof *pool);
    pool->program = program;
    pool->workers = workers;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = 1;
    for (int i = 1; i < threads; i++) {
        pool->workers[i].pool = pool;
        if (pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i])) return -1;
        pool->threads = i + 1;
    }
    return 0;
}

void mqc_pool_stop(Pool *pool) {
    if (!pool->workers) return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = 1;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pool->workers = NULL;
}

void mqc_pool_call(Pool *pool, const Run *common) {
    for (int i = 0; i < pool->threads; i++) {
        u8 *scores = pool->workers[i].run.scores;
        pool->workers[i].run = *common;
        pool->workers[i].run.tid = i;
        pool->workers[i].run.threads = pool->threads;
        pool->workers[i].run.barrier = &pool->barrier;
        pool->workers[i].run.scores = scores;
    }
    if (pool->threads > 1) {
        pthread_mutex_lock(&pool->lock);
        pool->call++;
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    pool->program(&pool->workers[0].run);
}
