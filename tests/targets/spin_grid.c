/* Times pairs of malloc and free in many settings: `spin_grid FRAMES THREADS LIVE STACKS CROSS`.
 *
 * FRAMES: depth of the stack at malloc, at least. THREADS: how many do it at the same time. LIVE: blocks that stay live in
 * between; a pair frees one of them at random. STACKS: distinct stacks that allocate, one after the other; more than one adds
 * 16 frames. CROSS 1: each of two threads frees what the other one has allocated.
 *
 * Each line `PAIRS` on standard input is answered with `pairs NANOSECONDS`: the time that passed, per pair of all threads
 * together. The first line also makes the live blocks, which a tracer that is attached after `ready` thus sees. */
#include "target.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

enum { MAX_THREADS = 16, LEVELS = 16, RING = 1024 };

struct ring {
    void *blocks[RING];
    unsigned long written __attribute__((aligned(64)));
    unsigned long read __attribute__((aligned(64)));
};

struct worker {
    pthread_t thread;
    unsigned long pairs;
    uint64_t random;
    void **live;
    unsigned long live_count;
    unsigned long stack;
    struct ring *in, *out;
};

static struct worker workers[MAX_THREADS];
static struct ring rings[2];
static int frames;
static unsigned long threads, live, stacks;
static int is_cross;

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static SITE void *allocate(void)
{
    void *block = malloc(opaque(64));
    KEEP(block);
    return block;
}

static SITE void *go_left(unsigned long stack, int level);

static SITE void *go_right(unsigned long stack, int level)
{
    void *block = level == 0 ? allocate() : (stack & 1 ? go_right : go_left)(stack >> 1, level - 1);
    __asm__ volatile("" : : : "memory");
    return block;
}

static SITE void *go_left(unsigned long stack, int level)
{
    void *block = level == 0 ? allocate() : (stack & 1 ? go_right : go_left)(stack >> 1, level - 1);
    __asm__ volatile("" : : : "memory");
    return block;
}

static inline void *make(struct worker *self)
{
    if (stacks <= 1)
        return allocate();
    self->stack = self->stack + 1 < stacks ? self->stack + 1 : 0;
    return go_left(self->stack, LEVELS);
}

static SITE void spin_alone(struct worker *self)
{
    for (unsigned long i = 0; i < self->pairs; i++) {
        void *block = make(self);
        if (self->live_count > 0) {
            void **place = &self->live[next_random(&self->random) % self->live_count];
            void *old = *place;
            *place = block;
            block = old;
        }
        free(block);
    }
}

static SITE void spin_crossed(struct worker *self)
{
    for (unsigned long given = 0, taken = 0; given < self->pairs || taken < self->pairs;) {
        unsigned long written = self->out->written;
        int is_stuck = 1;
        if (given < self->pairs && written - __atomic_load_n(&self->out->read, __ATOMIC_ACQUIRE) < RING) {
            self->out->blocks[written % RING] = make(self);
            __atomic_store_n(&self->out->written, written + 1, __ATOMIC_RELEASE);
            given++;
            is_stuck = 0;
        }
        unsigned long read = self->in->read;
        if (taken < self->pairs && read != __atomic_load_n(&self->in->written, __ATOMIC_ACQUIRE)) {
            free(self->in->blocks[read % RING]);
            __atomic_store_n(&self->in->read, read + 1, __ATOMIC_RELEASE);
            taken++;
            is_stuck = 0;
        }
        if (is_stuck)
            sched_yield();
    }
}

static SITE void descend(int left, struct worker *self)
{
    if (left > 0)
        descend(left - 1, self);
    else
        (is_cross ? spin_crossed : spin_alone)(self);
    __asm__ volatile("" : : : "memory");
}

static void *work(void *argument)
{
    descend(frames, argument);
    return NULL;
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void make_live(struct worker *self, unsigned long count)
{
    self->live = calloc(count + 1, sizeof *self->live);
    MUST(self->live != NULL);
    while (self->live_count < count)
        self->live[self->live_count++] = make(self);
}

int main(int argc, char **argv)
{
    char line[64];
    MUST(argc == 6);
    /* Five frames are there anyway: those of the library, work or main, spin_alone and allocate. */
    frames = atoi(argv[1]) - 5;
    threads = strtoul(argv[2], NULL, 10);
    live = strtoul(argv[3], NULL, 10);
    stacks = strtoul(argv[4], NULL, 10);
    is_cross = atoi(argv[5]);
    MUST(threads >= 1 && threads <= MAX_THREADS && (!is_cross || threads == 2));
    for (unsigned long i = 0; i < threads; i++) {
        workers[i].random = 88172645463325252u + i;
        workers[i].in = &rings[i & 1];
        workers[i].out = &rings[(i & 1) ^ 1];
    }
    target_say("ready\n");
    for (int is_first = 1; target_line(line, sizeof line); is_first = 0) {
        unsigned long pairs = strtoul(line, NULL, 10) / threads;
        MUST(pairs > 0);
        for (unsigned long i = 0; is_first && i < threads; i++)
            make_live(&workers[i], live / threads);
        double start = now_ns();
        for (unsigned long i = 0; i < threads; i++) {
            workers[i].pairs = pairs;
            if (i > 0)
                MUST(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
        }
        work(&workers[0]);
        for (unsigned long i = 1; i < threads; i++)
            MUST(pthread_join(workers[i].thread, NULL) == 0);
        double elapsed = now_ns() - start;
        char answer[64];
        int size = snprintf(answer, sizeof answer, "pairs %.3f\n", elapsed / (double)(pairs * threads));
        target_write(answer, (size_t)size);
    }
    return 0;
}
