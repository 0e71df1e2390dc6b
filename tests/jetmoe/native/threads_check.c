/* Counts how often each unit of each stage is computed: once, and never before the stage has begun. Then the same in
 * total, with stages that are prepared so quickly that a thread may look at the next one before it has begun. */

#include <stdio.h>

#include "threads.h"

enum { PIECES = 40, STAGES = 250, UNITS = 97, QUICK_STAGES = 200000 };

typedef struct {
    int stage, computed[UNITS], faults;
} Counts;

static long next(void *data)
{
    Counts *c = data;
    for (int unit = 0; unit < UNITS; unit++) {
        c->faults += c->computed[unit] != (c->stage > 0 && unit < c->stage % UNITS + 1);
        c->computed[unit] = 0;
    }
    c->stage++;
    return c->stage > STAGES ? 0 : c->stage % UNITS + 1;
}

static void unit(void *data, long unit)
{
    ((Counts *)data)->computed[unit]++;
}

typedef struct {
    long stage, expected, faults;
    atomic_long computed;
} Totals;

static long next_quickly(void *data)
{
    Totals *t = data;
    t->faults += atomic_load(&t->computed) != t->expected;
    if (t->stage++ == QUICK_STAGES)
        return 0;
    long units = t->stage % 2 ? 1 : UNITS;
    t->expected += units;
    return units;
}

static void count(void *data, long unit)
{
    (void)unit;
    atomic_fetch_add(&((Totals *)data)->computed, 1);
}

int main(void)
{
    Threads *threads = jetmoe_threads_new(4);
    int faults = 0;
    for (int piece = 0; piece < PIECES; piece++) {
        Counts counts = {0};
        run_work(threads, (Work){&counts, unit, next});
        faults += counts.faults + (counts.stage != STAGES + 1);
    }
    Totals totals = {0};
    run_work(threads, (Work){&totals, count, next_quickly});
    faults += (int)totals.faults;
    printf("%d threads, %d faults\n", threads->threads, faults);
    return faults != 0;
}
