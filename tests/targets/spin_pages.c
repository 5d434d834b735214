/* Times first touches of pages (`spin_pages touch`) or cheap system calls (`spin_pages call`); each line COUNT on standard
 * input is answered with `pairs NANOSECONDS`, the mean time of one. */
#define _GNU_SOURCE
#include "target.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define PAGE 4096UL
/* Pages of one mapping. */
#define BATCH 4096UL

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static SITE void touch(volatile char *base)
{
    for (size_t at = 0; at < BATCH * PAGE; at += PAGE)
        base[at] = 1;
}

/* Only the touching is timed. */
static double touch_all(unsigned long pages)
{
    double elapsed = 0;
    for (unsigned long done = 0; done < pages; done += BATCH) {
        char *base = mmap(NULL, BATCH * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        MUST(base != MAP_FAILED && madvise(base, BATCH * PAGE, MADV_NOHUGEPAGE) == 0);
        double start = now_ns();
        touch(base);
        elapsed += now_ns() - start;
        MUST(munmap(base, BATCH * PAGE) == 0);
    }
    return elapsed;
}

static double call_all(unsigned long calls)
{
    double start = now_ns();
    for (unsigned long done = 0; done < calls; done++)
        syscall(SYS_getppid);
    return now_ns() - start;
}

int main(int argc, char **argv)
{
    char line[64];
    int touches = argc < 2 || strcmp(argv[1], "call") != 0;
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long count = strtoul(line, NULL, 10) / BATCH * BATCH;
        if (count == 0)
            return 93;
        double elapsed = touches ? touch_all(count) : call_all(count);
        char answer[64];
        target_write(answer, (size_t)snprintf(answer, sizeof answer, "pairs %.3f\n", elapsed / (double)count));
    }
    return 0;
}
