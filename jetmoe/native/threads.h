/* Threads that work through stages: every stage is a number of units, and all units of a stage end before the next
 * stage begins.
 *
 * Threads claim units as they come, and the thread that ends the last unit prepares the next stage. So no thread waits
 * for one that has claimed nothing, which may have lost its core to another program. Waiting threads spin for some
 * microseconds, which bridges the gap between two stages, and then sleep. */

#ifndef JETMOE_THREADS_H
#define JETMOE_THREADS_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* The gap between two stages is far shorter. */
enum { SPIN_NANOSECONDS = 20000 };

/* The next unit while there is no work. */
static const uint64_t NO_WORK = UINT32_MAX;

typedef struct {
    void *data;
    void (*unit)(void *data, long unit);
    long (*next)(void *data); /* prepares the next stage; returns the number of its units, 0 at the end */
} Work;

typedef struct {
    _Alignas(64) atomic_uint_fast64_t ticket; /* number of the stage in the high half, next unit in the low half */
    _Alignas(64) atomic_long done;            /* units of the stage that have ended */
    _Alignas(64) atomic_long units[2];        /* units of the stages with even and with odd numbers */
    atomic_int sleeping;
    Work work;
    int threads;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} Threads;

static inline uint32_t stage_of(uint64_t ticket)
{
    return (uint32_t)(ticket >> 32);
}

static inline atomic_long *units_of_stage(Threads *t, uint64_t ticket)
{
    return t->units + stage_of(ticket) % 2;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool is_idle(Threads *t)
{
    return (uint32_t)atomic_load(&t->ticket) == NO_WORK;
}

static void wait_for_stage_after(Threads *t, uint64_t seen)
{
    int64_t until = nanoseconds() + SPIN_NANOSECONDS;
    do
        for (int i = 0; i < 32; i++, relax())
            if (stage_of(atomic_load(&t->ticket)) != stage_of(seen))
                return;
    while (nanoseconds() < until);
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleeping, 1);
    while (stage_of(atomic_load(&t->ticket)) == stage_of(seen))
        pthread_cond_wait(&t->changed, &t->lock);
    atomic_fetch_sub(&t->sleeping, 1);
    pthread_mutex_unlock(&t->lock);
}

static void start_stage(Threads *t)
{
    long units = t->work.next(t->work.data);
    uint64_t stage = (uint64_t)(stage_of(atomic_load(&t->ticket)) + 1) << 32;
    atomic_store(&t->done, 0);
    atomic_store(units_of_stage(t, stage), units);
    /* Last, because it releases the other threads, and the caller of `run_work` at the end. */
    atomic_store(&t->ticket, units ? stage : stage | NO_WORK);
    if (atomic_load(&t->sleeping)) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_broadcast(&t->changed);
        pthread_mutex_unlock(&t->lock);
    }
}

/* Claims units of the present stage: a share of those that are left, so that claims are few and the last ones short.
 * Returns their number; 0 if none are left. */
static long claim(Threads *t, uint64_t *ticket, long *first)
{
    *ticket = atomic_load(&t->ticket);
    for (;;) {
        long units = atomic_load(units_of_stage(t, *ticket)), count;
        *first = (long)(uint32_t)*ticket;
        if (*first >= units)
            return 0;
        count = (units - *first) / (2 * t->threads);
        count = count ? count : 1;
        /* Fails if the stage has changed since the ticket was read. Until then, `units` is of this stage: the next one
         * has a place of its own. */
        if (atomic_compare_exchange_weak(&t->ticket, ticket, *ticket + (uint64_t)count))
            return count;
    }
}

/* Claims and computes units until there is no work. */
static void compute(Threads *t)
{
    while (!is_idle(t)) {
        uint64_t ticket;
        long first, count = claim(t, &ticket, &first);
        if (!count) {
            if ((uint32_t)ticket != NO_WORK)
                wait_for_stage_after(t, ticket);
            continue;
        }
        /* The stage lasts until the claimed units are done. */
        long units = atomic_load(units_of_stage(t, ticket));
        for (long unit = first; unit < first + count; unit++)
            t->work.unit(t->work.data, unit);
        if (atomic_fetch_add(&t->done, count) + count == units)
            start_stage(t);
    }
}

static void *other_thread(void *threads)
{
    Threads *t = threads;
    for (;;) {
        uint64_t ticket = atomic_load(&t->ticket);
        if ((uint32_t)ticket == NO_WORK)
            wait_for_stage_after(t, ticket);
        compute(t);
    }
    return NULL;
}

/* Runs all stages in the calling thread and the others. One piece of work at a time. */
static void run_work(Threads *t, Work work)
{
    t->work = work;
    start_stage(t);
    compute(t);
}

/* Returns `count` threads, one of which is the caller of `run_work`: fewer if the system refuses more, NULL without
 * memory. They stay until the process ends. */
Threads *jetmoe_threads_new(int count)
{
    Threads *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    pthread_t other;
    sigset_t all, before;
    if (t == NULL)
        return NULL;
    *t = (Threads){.ticket = NO_WORK, .threads = 1};
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed, NULL);
    sigfillset(&all); /* signals are for the threads of the program */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; t->threads < count && !pthread_create(&other, NULL, other_thread, t); t->threads++)
        pthread_detach(other);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return t;
}

#endif
