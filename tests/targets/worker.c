/* Works until its input is closed, or for so many milliseconds, in steps of 20 ms on the monotonic clock:
 *
 *   worker KIND [MILLISECONDS [STATUS]]
 *
 *   leak     keeps one block of 512 bytes each step, beside the work of `level`
 *   both     the same, and one of 256 bytes each step at a second call site
 *   level    allocates and frees, and keeps a cache that was filled at the begin
 *
 * Without a time, prints `ready` and waits for a line first. What it keeps is a function of the time alone, however late a
 * step is.
 */
#include <poll.h>
#include <time.h>
#include "target.h"

#define STEP_MS 20
#define CACHE_SLOTS 64

/* Volatile: a cache that nobody reads would not be filled. */
static void *volatile cache[CACHE_SLOTS];

static SITE void site_cache(void)
{
    for (int slot = 0; slot < CACHE_SLOTS; slot++)
        cache[slot] = malloc(opaque(1024));
}

static SITE void site_work(void)
{
    for (int round = 0; round < 20; round++) {
        void *block = malloc(opaque(200));
        KEEP(block);
        free(block);
    }
}

static SITE void site_leak(void)
{
    KEEP(malloc(opaque(512)));
    __asm__ volatile("" : : : "memory");
}

static SITE void site_second_leak(void)
{
    KEEP(malloc(opaque(256)));
    __asm__ volatile("" : : : "memory");
}

static unsigned long now_ms(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    MUST(argc >= 2);
    int leaks = strcmp(argv[1], "level") != 0, twice = !strcmp(argv[1], "both");
    unsigned long limit = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    if (limit == 0)
        target_ready();
    site_cache();
    unsigned long begin = now_ms(), done = 0;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    /* A command's input may be closed from the beginning. */
    while (limit > 0 ? poll(NULL, 0, STEP_MS) == 0 : poll(&input, 1, STEP_MS) == 0) {
        unsigned long elapsed = now_ms() - begin;
        if (limit > 0 && elapsed > limit)
            elapsed = limit;
        for (; done < elapsed / STEP_MS; done++) {
            site_work();
            if (leaks)
                site_leak();
            if (twice)
                site_second_leak();
        }
        if (limit > 0 && elapsed == limit)
            break;
    }
    return argc > 3 ? atoi(argv[3]) : 0;
}
