/* Every system call that maps or unmaps, each in a function of its own, with the exact number of bytes and mappings
 * that must be outstanding at the end. A mapping counts as one until its last byte is gone, in however many pieces. */
#define _GNU_SOURCE
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

#define PAGE 4096ul
#define PAGES(count) ((count) * PAGE)

enum {
    RACE_THREADS = 2,
    RACE_ROUNDS = 6000,
    RACE_KEEP_EVERY = 500,
};

static inline __attribute__((always_inline)) char *map_with(size_t pages, int protection, int flags, int file)
{
    char *start = mmap(NULL, opaque(PAGES(pages)), protection, flags, file, 0);
    MUST(start != MAP_FAILED);
    KEEP(start);
    return start;
}

static inline __attribute__((always_inline)) char *map(size_t pages)
{
    return map_with(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static inline __attribute__((always_inline)) char *map_at(char *address, size_t pages)
{
    char *start = mmap(address, PAGES(pages), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    MUST(start == address);
    KEEP(start);
    return start;
}

/* The plain calls. */

static SITE void site_kept(void)
{
    map(10);
    char *odd = mmap(NULL, opaque(PAGES(2) + 1), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(odd != MAP_FAILED);
    MUST(munmap(map(5), PAGES(5)) == 0);
    expect("site_kept", PAGES(13), 2, PAGES(18), 3);
}

static SITE void site_unmap_head(void)
{
    MUST(munmap(map(10), PAGES(3)) == 0);
    expect("site_unmap_head", PAGES(7), 1, PAGES(10), 1);
}

/* Two pieces of one mapping. */
static SITE void site_unmap_middle(void)
{
    MUST(munmap(map(10) + PAGES(4), PAGES(2)) == 0);
    expect("site_unmap_middle", PAGES(8), 1, PAGES(10), 1);
}

/* The length is rounded up to a page. */
static SITE void site_unmap_tail(void)
{
    MUST(munmap(map(10) + PAGES(9), 1) == 0);
    expect("site_unmap_tail", PAGES(9), 1, PAGES(10), 1);
}

static SITE void site_unmap_in_two(void)
{
    char *start = map(4);
    MUST(munmap(start + PAGES(2), PAGES(2)) == 0);
    MUST(munmap(start, PAGES(2)) == 0);
    expect("site_unmap_in_two", 0, 0, PAGES(4), 1);
}

/* One munmap over the mappings of two sites. */

static SITE char *site_span_reserve(void)
{
    char *start = map_with(20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    expect("site_span_reserve", 0, 0, 0, 0);
    return start;
}

static SITE void site_span_first(char *start)
{
    map_at(start, 8);
    expect("site_span_first", PAGES(4), 1, PAGES(8), 1);
}

static SITE void site_span_second(char *start)
{
    map_at(start + PAGES(8), 12);
    expect("site_span_second", PAGES(6), 1, PAGES(12), 1);
}

static void span(void)
{
    char *start = site_span_reserve();
    site_span_first(start);
    site_span_second(start);
    MUST(munmap(start + PAGES(4), PAGES(10)) == 0);
}

/* MAP_FIXED over something older. */

static SITE char *site_older(void)
{
    char *start = map(12);
    expect("site_older", PAGES(7), 1, PAGES(12), 1);
    return start;
}

static SITE void site_newer(void)
{
    map_at(site_older() + PAGES(2), 5);
    expect("site_newer", PAGES(5), 1, PAGES(5), 1);
}

/* mremap: the old bytes keep their site, what is added belongs to the call. */

static SITE char *site_grow_origin(void)
{
    char *start = map(4);
    expect("site_grow_origin", PAGES(4), 1, PAGES(4), 1);
    return start;
}

static SITE void site_grow(void)
{
    char *grown = mremap(site_grow_origin(), PAGES(4), opaque(PAGES(9)), MREMAP_MAYMOVE);
    MUST(grown != MAP_FAILED);
    expect("site_grow", PAGES(5), 1, PAGES(5), 1);
}

static SITE char *site_shrink_origin(void)
{
    char *start = map(10);
    expect("site_shrink_origin", PAGES(6), 1, PAGES(10), 1);
    return start;
}

static SITE void site_shrink(void)
{
    MUST(mremap(site_shrink_origin(), PAGES(10), opaque(PAGES(6)), 0) != MAP_FAILED);
    expect("site_shrink", 0, 0, 0, 0);
}

static SITE char *site_move_origin(void)
{
    char *start = map(8);
    expect("site_move_origin", PAGES(6), 1, PAGES(8), 1);
    return start;
}

static SITE char *site_move_target(void)
{
    char *start = map(8);
    expect("site_move_target", 0, 0, PAGES(8), 1);
    return start;
}

static SITE void site_move(void)
{
    char *target = site_move_target();
    char *moved = mremap(site_move_origin(), PAGES(8), PAGES(8), MREMAP_MAYMOVE | MREMAP_FIXED, target);
    MUST(moved == target);
    MUST(munmap(moved + PAGES(6), PAGES(2)) == 0);
    expect("site_move", 0, 0, 0, 0);
}

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static SITE char *site_leave_origin(void)
{
    char *start = map(5);
    expect("site_leave_origin", PAGES(5), 1, PAGES(5), 1);
    return start;
}

/* The bytes are elsewhere, the empty range stays: it is this call that has made it one more. */
static SITE void site_leave(void)
{
    char *moved = mremap(site_leave_origin(), PAGES(5), PAGES(5), MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    MUST(moved != MAP_FAILED);
    expect("site_leave", PAGES(5), 1, PAGES(5), 1);
}

/* Calls that fail leave everything as it was. */

static SITE void site_fail(void)
{
    char *start = map(3);
    MUST(munmap(start + 1, PAGE) == -1 && errno == EINVAL);
    MUST(munmap(start, opaque(0)) == -1 && errno == EINVAL);
    /* Announced, and then refused: the range reaches beyond what a process can have, with five levels too. */
    MUST(munmap(start, opaque(1ul << 60)) == -1 && errno == EINVAL);
    MUST(mremap(start, PAGES(3), opaque(1ul << 60), MREMAP_MAYMOVE) == MAP_FAILED);
    MUST(mremap(start, PAGES(3), PAGES(4), 64) == MAP_FAILED);
    MUST(mmap(NULL, opaque(1ul << 60), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    MUST(mmap(NULL, opaque(PAGE), PROT_READ, MAP_PRIVATE, -1, 0) == MAP_FAILED);
    expect("site_fail", PAGES(3), 1, PAGES(3), 1);
}

/* Address space that is no memory. */

static SITE void site_reserve(void)
{
    char *start = map_with(64, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    MUST(mprotect(start + PAGES(20), PAGES(5), PROT_READ | PROT_WRITE) == 0);
    expect("site_reserve", PAGES(5), 1, PAGES(5), 1);
}

static SITE void site_withdraw(void)
{
    MUST(mprotect(map(6) + PAGES(1), PAGES(2), PROT_NONE) == 0);
    expect("site_withdraw", PAGES(4), 1, PAGES(6), 1);
}

static SITE void site_reserve_given_back(void)
{
    char *start = map_with(64, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    MUST(munmap(start, PAGES(64)) == 0);
    expect("site_reserve_given_back", 0, 0, 0, 0);
}

/* Shared memory and files. */

static SITE void site_shared(void)
{
    map_with(7, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    expect("site_shared", PAGES(7), 1, PAGES(7), 1);
}

static SITE void site_memfd(void)
{
    int file = memfd_create("mappings", 0);
    MUST(file >= 0 && ftruncate(file, PAGES(6)) == 0);
    map_with(6, PROT_READ | PROT_WRITE, MAP_SHARED, file);
    MUST(close(file) == 0);
    expect("site_memfd", PAGES(6), 1, PAGES(6), 1);
}

static SITE void site_file(void)
{
    int file = open("/proc/self/exe", O_RDONLY);
    MUST(file >= 0);
    map_with(2, PROT_READ, MAP_PRIVATE, file);
    MUST(close(file) == 0);
    expect("site_file", PAGES(2), 1, PAGES(2), 1);
}

static inline __attribute__((always_inline)) char *attach_segment(size_t pages)
{
    int segment = shmget(IPC_PRIVATE, PAGES(pages), IPC_CREAT | 0600);
    MUST(segment >= 0);
    char *start = shmat(segment, NULL, 0);
    MUST(start != (char *)-1);
    MUST(shmctl(segment, IPC_RMID, NULL) == 0);
    KEEP(start);
    return start;
}

static SITE void site_segment(void)
{
    attach_segment(5);
    expect("site_segment", PAGES(5), 1, PAGES(5), 1);
}

/* Whether its length was ever read depends on time; that it is gone does not. */
static SITE void site_segment_detached(void)
{
    MUST(shmdt(attach_segment(3)) == 0);
    expect_outstanding("site_segment_detached", 0, 0);
}

static SITE void site_segment_unmapped(void)
{
    MUST(munmap(attach_segment(3), PAGES(3)) == 0);
    expect_outstanding("site_segment_unmapped", 0, 0);
}

/* The break. */

static SITE void site_break(void)
{
    uintptr_t before = (uintptr_t)sbrk(0);
    MUST(sbrk(PAGES(10)) != (void *)-1);
    uintptr_t after = (uintptr_t)sbrk(0);
    unsigned long bytes = (after + PAGE - 1) / PAGE * PAGE - (before + PAGE - 1) / PAGE * PAGE;
    MUST(sbrk(-PAGES(4)) != (void *)-1);
    expect("site_break", bytes - PAGES(4), 1, bytes, 1);
}

/* Threads. Sizes differ, so that none gets the stack of another one by chance. */

static sem_t thread_measured;
static unsigned long stack_bytes;

static void measure_stack(void)
{
    pthread_attr_t attributes;
    void *start;
    size_t size;
    MUST(pthread_getattr_np(pthread_self(), &attributes) == 0);
    MUST(pthread_attr_getstack(&attributes, &start, &size) == 0);
    stack_bytes = size;
    sem_post(&thread_measured);
}

static void *ending_thread(void *unused)
{
    measure_stack();
    return unused;
}

static void *waiting_thread(void *unused)
{
    measure_stack();
    pause();
    return unused;
}

static inline __attribute__((always_inline)) pthread_t begin_thread(void *(*body)(void *), size_t kib)
{
    pthread_t thread;
    pthread_attr_t attributes;
    MUST(pthread_attr_init(&attributes) == 0);
    MUST(pthread_attr_setstacksize(&attributes, kib << 10) == 0);
    MUST(pthread_create(&thread, &attributes, body, NULL) == 0);
    sem_wait(&thread_measured);
    return thread;
}

static SITE void site_thread_running(void)
{
    begin_thread(waiting_thread, 256);
    expect("site_thread_running", stack_bytes, 1, stack_bytes, 1);
}

static SITE void site_thread_not_joined(void)
{
    begin_thread(ending_thread, 320);
    expect("site_thread_not_joined", stack_bytes, 1, stack_bytes, 1);
}

/* Its stack is kept for the next thread. */
static SITE void site_thread_joined(void)
{
    MUST(pthread_join(begin_thread(ending_thread, 384), NULL) == 0);
    expect("site_thread_joined", stack_bytes, 1, stack_bytes, 1);
}

static SITE void site_thread_on_old_stack(void)
{
    begin_thread(waiting_thread, 384);
    expect("site_thread_on_old_stack", 0, 0, 0, 0);
}

/* What an allocator maps is its own business. */
static SITE void site_malloc_large(void)
{
    KEEP(malloc(8 << 20));
    expect("site_malloc_large", 0, 0, 0, 0);
}

/* Two threads, one on each CPU: an address that one has unmapped is mapped by the other at once. */

static sem_t race_go, race_done;

static SITE void site_race(void)
{
    for (int round = 0; round < RACE_ROUNDS; round++) {
        char *start = map(2);
        char *grown = mremap(start, PAGES(2), opaque(PAGES(4)), MREMAP_MAYMOVE);
        MUST(grown != MAP_FAILED);
        MUST(munmap(grown + PAGES(1), PAGES(1)) == 0);
        if (round % RACE_KEEP_EVERY != 0)
            MUST(munmap(grown, PAGES(4)) == 0);
    }
}

static void *racing_thread(void *number)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET((uintptr_t)number, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus); /* fails on a machine with one CPU: they race all the same */
    sem_wait(&race_go);
    site_race();
    sem_post(&race_done);
    pause();
    return NULL;
}

static void race(void)
{
    for (int i = 0; i < RACE_THREADS; i++)
        sem_post(&race_go);
    for (int i = 0; i < RACE_THREADS; i++)
        sem_wait(&race_done);
    unsigned long rounds = RACE_THREADS * RACE_ROUNDS, kept = RACE_THREADS * (RACE_ROUNDS / RACE_KEEP_EVERY);
    expect("site_race", kept * PAGES(3), kept * 2, rounds * PAGES(4), rounds * 2);
}

/* Mapped before the attach: not in the book, wherever it goes. */

static SITE void site_before(char *before)
{
    MUST(munmap(before, PAGES(4)) == 0);
    MUST(mremap(before + PAGES(4), PAGES(4), opaque(PAGES(2)), 0) != MAP_FAILED);
    expect("site_before", 0, 0, 0, 0);
}

int main(void)
{
    sem_init(&thread_measured, 0, 0);
    sem_init(&race_go, 0, 0);
    sem_init(&race_done, 0, 0);
    char *before = map(8);
    for (uintptr_t i = 0; i < RACE_THREADS; i++) {
        pthread_t thread;
        MUST(pthread_create(&thread, NULL, racing_thread, (void *)i) == 0);
    }
    target_ready();

    site_kept();
    site_unmap_head();
    site_unmap_middle();
    site_unmap_tail();
    site_unmap_in_two();
    span();
    site_newer();
    site_grow();
    site_shrink();
    site_move();
    site_leave();
    site_fail();
    site_reserve();
    site_withdraw();
    site_reserve_given_back();
    site_shared();
    site_memfd();
    site_file();
    site_segment();
    site_segment_detached();
    site_segment_unmapped();
    site_break();
    site_thread_running();
    site_thread_not_joined();
    site_thread_joined();
    site_thread_on_old_stack();
    site_malloc_large();
    race();
    site_before(before);

    target_truth(0);
    return 0;
}
