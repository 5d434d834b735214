/* Growth and no growth of every kind at once, one thread for each, paced by the monotonic clock.
 *
 * Prints `ready` and waits for `run SECONDS`. Then every thread follows its schedule, all from the same moment on, and for each
 * site that leaks the target prints what it has kept, and when it kept the first and the last of it:
 *
 *   steady_leak.bytes 768000
 *   steady_leak.first_us 20
 *   steady_leak.first_bytes 512
 *   steady_leak.last_us 14990017
 *   done
 *
 * A thread that was late does what it has missed: what is kept is a function of the time alone. Nothing is printed or
 * started by the allocator but the threads.
 */
#include <pthread.h>
#include <time.h>
#include "target.h"

struct kept {
    unsigned long bytes, count, first_us, first_bytes, last_us;
};

static struct timespec begin;
static unsigned long length_us;

static unsigned long now_us(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (unsigned long)(now.tv_sec - begin.tv_sec) * 1000000ul + (unsigned long)(now.tv_nsec / 1000) -
           (unsigned long)(begin.tv_nsec / 1000);
}

/* Waits for a moment; 0 when the run is over before it. */
static int wait_until(unsigned long at_us)
{
    if (at_us >= length_us)
        at_us = length_us;
    struct timespec until = begin;
    until.tv_sec += (time_t)(at_us / 1000000ul);
    until.tv_nsec += (long)(at_us % 1000000ul) * 1000;
    if (until.tv_nsec >= 1000000000l) {
        until.tv_sec += 1;
        until.tv_nsec -= 1000000000l;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) {
    }
    return at_us < length_us;
}

static void note(struct kept *kept, size_t bytes)
{
    kept->last_us = now_us();
    if (kept->count == 0) {
        kept->first_us = kept->last_us;
        kept->first_bytes = bytes;
    }
    kept->bytes += bytes;
    kept->count += 1;
}

static uint64_t mixed(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

/* 512 bytes every 10 ms are kept. */
static struct kept kept_steady;

SITE static void steady_leak(void)
{
    KEEP(malloc(opaque(512)));
    note(&kept_steady, 512);
}

static void *run_steady(void *unused)
{
    (void)unused;
    for (unsigned long at = 0; wait_until(at); at += 10000)
        steady_leak();
    return NULL;
}

/* Some 3 MB a second of blocks that live for up to 0.2 s; of every fifty, one of 48 bytes is kept: 480 bytes a second. The call
 * site is the same. */
#define CHURNED 100
static struct kept kept_slow;

SITE static void *churn_block(size_t size)
{
    return KEEP(malloc(opaque(size)));
}

static void *run_slow(void *unused)
{
    static void *blocks[CHURNED];
    (void)unused;
    for (unsigned long n = 0; wait_until(n * 2000); n++) {
        /* Opaque, so that the call stays one. */
        size_t is_kept = opaque(n % 50 == 49);
        void *block = churn_block(is_kept ? 48 : 256 + mixed(n) % 12000);
        if (opaque(is_kept)) {
            note(&kept_slow, 48);
            continue;
        }
        void **place = &blocks[mixed(n + 1) % CHURNED];
        free(*place);
        *place = block;
    }
    /* The rest of the churn is not kept. */
    for (size_t at = 0; at < CHURNED; at++)
        free(blocks[at]);
    return NULL;
}

/* 256 bytes every 10 ms are kept, while another site gives back three times as much of what it took at the begin. */
static struct kept kept_masked;
#define GIVEN 80000
static void *given[GIVEN];

SITE static void masked_leak(void)
{
    KEEP(malloc(opaque(256)));
    note(&kept_masked, 256);
}

SITE static void *masking_block(void)
{
    return KEEP(malloc(opaque(80)));
}

static void *run_masked(void *unused)
{
    (void)unused;
    unsigned long gone = 0;
    for (unsigned long at = 0; wait_until(at); at += 10000) {
        masked_leak();
        for (int more = 0; more < 10 && gone < GIVEN; more++)
            free(given[gone++]);
    }
    return NULL;
}

/* A cache of 2 KiB entries, 50 a second, that is full after three tenths of the run: each further one replaces the oldest. */
#define ENTRIES 20000

SITE static void *cache_entry(void)
{
    return KEEP(malloc(opaque(2048)));
}

static void *run_cache(void *unused)
{
    static void *entries[ENTRIES];
    (void)unused;
    unsigned long room = length_us * 3 / 10 / 20000;
    MUST(room > 0 && room <= ENTRIES);
    for (unsigned long n = 0; wait_until(n * 20000); n++) {
        free(entries[n % room]);
        entries[n % room] = cache_entry();
    }
    return NULL;
}

/* 4 KiB every 10 ms, all given back every 5 s. */
#define SAW 500

SITE static void *saw_block(void)
{
    return KEEP(malloc(opaque(4096)));
}

static void *run_saw(void *unused)
{
    static void *blocks[SAW];
    (void)unused;
    for (unsigned long n = 0; wait_until(n * 10000); n++) {
        if (n % SAW == 0)
            for (size_t at = 0; at < SAW; at++) {
                free(blocks[at]);
                blocks[at] = NULL;
            }
        blocks[n % SAW] = saw_block();
    }
    return NULL;
}

/* 1 KiB every 5 ms for a fifth of the run, then no more. */
SITE static void warm_up(void)
{
    KEEP(malloc(opaque(1024)));
}

static void *run_warm(void *unused)
{
    (void)unused;
    for (unsigned long at = 0; at < length_us / 5 && wait_until(at); at += 5000)
        warm_up();
    return NULL;
}

/* Small blocks for a tenth of the run, of which nine of ten are freed: each page keeps one, so nothing of them goes back to the
 * kernel. Short-lived blocks after that. */
#define PIECES 100000

SITE static void *fragment(void)
{
    return KEEP(malloc(opaque(200)));
}

SITE static void *short_block(void)
{
    return KEEP(malloc(opaque(400)));
}

static void *run_fragments(void *unused)
{
    static void *pieces[PIECES];
    (void)unused;
    unsigned long count = 0;
    for (unsigned long at = 0; at < length_us / 10 && wait_until(at); at += 10000)
        for (int more = 0; more < 100 && count < PIECES; more++)
            pieces[count++] = fragment();
    for (unsigned long n = 0; n < count; n++)
        if (n % 10 != 0)
            free(pieces[n]);
    for (unsigned long at = length_us / 10; wait_until(at); at += 10000)
        free(short_block());
    return NULL;
}

/* Four threads do the same work; the third forgets every tenth block. */
static struct kept kept_thread;

SITE static void *worker_block(void)
{
    return KEEP(malloc(opaque(320)));
}

static void *run_worker(void *is_leaky)
{
    for (unsigned long n = 0; wait_until(n * 5000); n++) {
        void *block = worker_block();
        if (is_leaky && n % 10 == 9)
            note(&kept_thread, 320);
        else
            free(block);
    }
    return NULL;
}

/* One buffer that grows by 4 KiB every 100 ms. */
static struct kept kept_realloc;

SITE static void *grow_buffer(void *buffer, size_t size)
{
    return KEEP(realloc(buffer, opaque(size)));
}

static void *run_realloc(void *unused)
{
    void *buffer = NULL;
    (void)unused;
    for (unsigned long n = 0; wait_until(n * 100000); n++) {
        buffer = grow_buffer(buffer, (n + 1) * 4096);
        note(&kept_realloc, 4096);
    }
    return NULL;
}

/* First in, first out: each block waits for 1.5 s. */
#define WAITING 150

SITE static void *queued_block(void)
{
    return KEEP(malloc(opaque(700)));
}

static void *run_queue(void *unused)
{
    static void *queue[WAITING];
    (void)unused;
    for (unsigned long n = 0; wait_until(n * 10000); n++) {
        free(queue[n % WAITING]);
        queue[n % WAITING] = queued_block();
    }
    return NULL;
}

static void tell(const char *function, const struct kept *kept)
{
    const char *names[] = {"bytes", "count", "first_us", "first_bytes", "last_us"};
    const unsigned long values[] = {kept->bytes, kept->count, kept->first_us, kept->first_bytes, kept->last_us};
    for (size_t at = 0; at < sizeof names / sizeof *names; at++) {
        char line[128];
        int size = snprintf(line, sizeof line, "%s.%s %lu\n", function, names[at], values[at]);
        MUST(size > 0 && (size_t)size < sizeof line);
        target_write(line, (size_t)size);
    }
}

int main(void)
{
    static char leaky;
    void *(*const runs[])(void *) = {run_steady, run_slow, run_masked, run_cache, run_saw, run_warm, run_fragments,
                                     run_realloc, run_queue, run_worker, run_worker, run_worker, run_worker};
    enum { THREADS = sizeof runs / sizeof *runs };
    pthread_t threads[THREADS];
    char line[32];
    unsigned seconds;
    target_say("ready\n");
    MUST(target_line(line, sizeof line) && sscanf(line, "run %u", &seconds) == 1 && seconds > 0);
    length_us = seconds * 1000000ul;
    /* Before the clock starts: it takes a while when it is traced. */
    for (size_t at = 0; at < GIVEN; at++)
        given[at] = masking_block();
    MUST(clock_gettime(CLOCK_MONOTONIC, &begin) == 0);
    for (size_t at = 0; at < THREADS; at++)
        MUST(pthread_create(&threads[at], NULL, runs[at], at == THREADS - 2 ? &leaky : NULL) == 0);
    for (size_t at = 0; at < THREADS; at++)
        MUST(pthread_join(threads[at], NULL) == 0);
    tell("steady_leak", &kept_steady);
    tell("churn_block", &kept_slow);
    tell("masked_leak", &kept_masked);
    tell("worker_block", &kept_thread);
    tell("grow_buffer", &kept_realloc);
    target_say("done\n");
    while (target_line(line, sizeof line)) {
    }
    return 0;
}
