/* Every allocator function of the C library and every bookkeeping rule, each in a function of its own, with the
 * exact number of bytes and blocks that must be outstanding at the end. */
#define _GNU_SOURCE
#include "target.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

enum {
    BEFORE_COUNT = 10,
    CROSS_COUNT = 20,
    HAMMER_THREADS = 8,
    HAMMER_ROUNDS = 1000,
    HAMMER_SLOTS = 32,
    HAMMER_BYTES = 100,
};

#define HUGE_BYTES opaque(SIZE_MAX / 2 - 4096)

/* The plain functions. */

static SITE void site_malloc(void)
{
    KEEP(malloc(1));
    for (int i = 0; i < 3; i++)
        KEEP(malloc(100));
    void *short_lived = malloc(64);
    KEEP(short_lived);
    free(short_lived);
    expect("site_malloc", 301, 4, 365, 5);
}

static SITE void site_malloc_zero(void)
{
    void *block = malloc(opaque(0));
    MUST(block);
    KEEP(block);
    expect("site_malloc_zero", 0, 1, 0, 1);
}

static SITE void site_malloc_large(void)
{
    KEEP(malloc(8 << 20));
    void *mapped = malloc(16 << 20);
    KEEP(mapped);
    free(mapped);
    expect("site_malloc_large", 8ul << 20, 1, 24ul << 20, 2);
}

static SITE void site_malloc_fail(void)
{
    void *block = malloc(HUGE_BYTES);
    MUST(!block);
    KEEP(block);
    expect("site_malloc_fail", 0, 0, 0, 0);
}

static SITE void site_calloc(void)
{
    KEEP(calloc(opaque(7), 11));
    void *empty = calloc(opaque(0), 5);
    KEEP(empty);
    free(empty);
    expect("site_calloc", 77, 1, 77, 2);
}

static SITE void site_calloc_overflow(void)
{
    void *block = calloc(opaque(SIZE_MAX / 2), opaque(3));
    MUST(!block);
    KEEP(block);
    expect("site_calloc_overflow", 0, 0, 0, 0);
}

static SITE void site_posix_memalign(void)
{
    void *block = NULL;
    MUST(posix_memalign(&block, 64, 256) == 0);
    KEEP(block);
    expect("site_posix_memalign", 256, 1, 256, 1);
}

/* The failed call leaves the address of a live block behind `out`: whoever reads it books nonsense. */
static SITE void site_posix_memalign_fail(void)
{
    void *block = malloc(55);
    KEEP(block);
    void *out = block;
    MUST(posix_memalign(&out, opaque(3), 128) == EINVAL);
    MUST(posix_memalign(&out, opaque(64), HUGE_BYTES) == ENOMEM);
    KEEP(out);
    expect("site_posix_memalign_fail", 55, 1, 55, 1);
}

static SITE void site_aligned_alloc(void)
{
    KEEP(aligned_alloc(64, opaque(640)));
    expect("site_aligned_alloc", 640, 1, 640, 1);
}

static SITE void site_memalign(void)
{
    KEEP(memalign(32, opaque(96)));
    expect("site_memalign", 96, 1, 96, 1);
}

static SITE void site_valloc(void)
{
    KEEP(valloc(opaque(123)));
    expect("site_valloc", 123, 1, 123, 1);
}

/* Rounded up to a page by the library: the requested bytes are booked. */
static SITE void site_pvalloc(void)
{
    KEEP(pvalloc(opaque(200)));
    expect("site_pvalloc", 200, 1, 200, 1);
}

static SITE void site_free_null(void)
{
    for (int i = 0; i < 5; i++) {
        free((void *)opaque(0));
    }
    expect("site_free_null", 0, 0, 0, 0);
}

/* Resizing. */

static SITE void site_realloc_null(void)
{
    KEEP(realloc((void *)opaque(0), 50));
    expect("site_realloc_null", 50, 1, 50, 1);
}

static SITE void *site_shrink_origin(void)
{
    void *block = malloc(1000);
    KEEP(block);
    expect("site_shrink_origin", 0, 0, 1000, 1);
    return block;
}

static SITE void site_realloc_in_place(void)
{
    void *block = site_shrink_origin();
    uintptr_t before = (uintptr_t)block;
    void *shrunk = realloc(block, opaque(500));
    MUST((uintptr_t)shrunk == before);
    KEEP(shrunk);
    expect("site_realloc_in_place", 500, 1, 500, 1);
}

static SITE void *site_move_origin(void)
{
    void *block = malloc(100);
    KEEP(block);
    expect("site_move_origin", 0, 0, 100, 1);
    return block;
}

static SITE void site_realloc_moving(void)
{
    void *block = site_move_origin();
    void *behind = malloc(100);
    KEEP(behind);
    uintptr_t before = (uintptr_t)block;
    void *moved = realloc(block, opaque(100000));
    MUST((uintptr_t)moved != before);
    KEEP(moved);
    free(behind);
    expect("site_realloc_moving", 100000, 1, 100100, 2);
}

static SITE void *site_fail_origin(void)
{
    void *block = malloc(333);
    KEEP(block);
    expect("site_fail_origin", 333, 1, 333, 1);
    return block;
}

/* The old block lives, and can be released afterwards. */
static SITE void site_realloc_fail(void)
{
    MUST(!realloc(site_fail_origin(), HUGE_BYTES));
    void *block = malloc(77);
    KEEP(block);
    MUST(!realloc(block, HUGE_BYTES));
    free(block);
    expect("site_realloc_fail", 0, 0, 77, 1);
}

static SITE void *site_zero_origin(void)
{
    void *block = malloc(44);
    KEEP(block);
    expect("site_zero_origin", 0, 0, 44, 1);
    return block;
}

static SITE void site_realloc_zero(void)
{
    MUST(!realloc(site_zero_origin(), opaque(0)));
    expect("site_realloc_zero", 0, 0, 0, 0);
}

static SITE void *site_array_origin(void)
{
    void *block = malloc(30);
    KEEP(block);
    expect("site_array_origin", 0, 0, 30, 1);
    return block;
}

static SITE void site_reallocarray(void)
{
    KEEP(reallocarray((void *)opaque(0), 6, 9));
    KEEP(reallocarray(site_array_origin(), opaque(20), 20));
    expect("site_reallocarray", 454, 2, 454, 2);
}

static SITE void *site_array_overflow_origin(void)
{
    void *block = malloc(66);
    KEEP(block);
    expect("site_array_overflow_origin", 66, 1, 66, 1);
    return block;
}

static SITE void site_reallocarray_overflow(void)
{
    MUST(!reallocarray(site_array_overflow_origin(), opaque(SIZE_MAX / 2), opaque(3)));
    expect("site_reallocarray_overflow", 0, 0, 0, 0);
}

/* Blocks from before the attach. */

static void *before[BEFORE_COUNT];

static SITE void site_free_before(void)
{
    for (int i = 0; i < 4; i++)
        free(before[i]);
    expect("site_free_before", 0, 0, 0, 0);
}

static SITE void site_realloc_before(void)
{
    KEEP(realloc(before[4], opaque(700)));
    expect("site_realloc_before", 700, 1, 700, 1);
}

/* Threads. They are created before the attach, because creating one allocates. */

static sem_t thread_go, thread_done;
static void *to_thread[CROSS_COUNT], *from_thread[CROSS_COUNT];

static SITE void site_freed_by_thread(void)
{
    for (int i = 0; i < CROSS_COUNT; i++)
        to_thread[i] = malloc(48);
    expect("site_freed_by_thread", 5 * 48, 5, CROSS_COUNT * 48, CROSS_COUNT);
}

static SITE void site_thread_allocates(void)
{
    for (int i = 0; i < CROSS_COUNT; i++)
        from_thread[i] = malloc(32);
}

static void *crossing_thread(void *unused)
{
    (void)unused;
    sem_wait(&thread_go);
    for (int i = 0; i < 15; i++)
        free(to_thread[i]);
    site_thread_allocates();
    sem_post(&thread_done);
    pause();
    return NULL;
}

static void cross_threads(void)
{
    site_freed_by_thread();
    sem_post(&thread_go);
    sem_wait(&thread_done);
    for (int i = 0; i < 4; i++)
        free(from_thread[i]);
    expect("site_thread_allocates", 16 * 32, 16, CROSS_COUNT * 32, CROSS_COUNT);
}

static sem_t hammer_go, hammer_done;
static void *_Atomic hammer_slots[HAMMER_SLOTS];

/* Whatever stands in the slot was allocated by any thread: its address is given out again at once. */
static SITE void site_hammer(unsigned thread)
{
    for (unsigned round = 0; round < HAMMER_ROUNDS; round++) {
        void *mine = malloc(HAMMER_BYTES);
        free(atomic_exchange(&hammer_slots[(thread * 7 + round) % HAMMER_SLOTS], mine));
    }
}

static void *hammering_thread(void *number)
{
    sem_wait(&hammer_go);
    site_hammer((unsigned)(uintptr_t)number);
    sem_post(&hammer_done);
    pause();
    return NULL;
}

static void hammer(void)
{
    for (int i = 0; i < HAMMER_THREADS; i++)
        sem_post(&hammer_go);
    for (int i = 0; i < HAMMER_THREADS; i++)
        sem_wait(&hammer_done);
    expect("site_hammer", HAMMER_SLOTS * HAMMER_BYTES, HAMMER_SLOTS,
           (unsigned long)HAMMER_THREADS * HAMMER_ROUNDS * HAMMER_BYTES, HAMMER_THREADS * HAMMER_ROUNDS);
}

static void start_thread(void *(*body)(void *), uintptr_t number)
{
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, body, (void *)number) == 0);
}

int main(void)
{
    sem_init(&thread_go, 0, 0);
    sem_init(&thread_done, 0, 0);
    sem_init(&hammer_go, 0, 0);
    sem_init(&hammer_done, 0, 0);
    start_thread(crossing_thread, 0);
    for (uintptr_t i = 0; i < HAMMER_THREADS; i++)
        start_thread(hammering_thread, i);
    for (int i = 0; i < BEFORE_COUNT; i++)
        before[i] = malloc(10);
    target_ready();

    site_malloc();
    site_malloc_zero();
    site_malloc_large();
    site_malloc_fail();
    site_calloc();
    site_calloc_overflow();
    site_posix_memalign();
    site_posix_memalign_fail();
    site_aligned_alloc();
    site_memalign();
    site_valloc();
    site_pvalloc();
    site_free_null();
    site_realloc_null();
    site_realloc_in_place();
    site_realloc_moving();
    site_realloc_fail();
    site_realloc_zero();
    site_reallocarray();
    site_reallocarray_overflow();
    site_free_before();
    site_realloc_before();
    cross_threads();
    hammer();

    target_truth(1);
    return 0;
}
