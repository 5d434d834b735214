/* Resident memory by a schedule, without an allocator: pages of one mapping are touched and given back.
 *
 *   grower KIND
 *
 * Prints `ready`, waits for a line, then follows the schedule on the monotonic clock, in steps of 20 ms, until its
 * input is closed. What it holds is a function of the time alone, however late a step is.
 *
 *   grow       256 KiB every 20 ms
 *   warm       grows for 4 s, ever slower, then is level
 *   cache      grows evenly for 6 s, then is level, one page replaced by another
 *   saw        rises by 16 MiB every 2400 ms and falls back to the same floor
 *   saw-leak   the same, and keeps 1.5 MiB of each cycle
 *   shrink     begins with 96 MiB and gives 50 KiB back every 20 ms
 *   level      stays
 */
#include <sys/mman.h>
#include <time.h>
#include <poll.h>
#include "target.h"

#define PAGE 4096ul
#define LARGEST (1ul << 30)
#define STEP_MS 20

static char *area;
static size_t resident;

/* Makes exactly this much of the area resident. */
static void hold(size_t bytes)
{
    bytes &= ~(PAGE - 1);
    MUST(bytes <= LARGEST);
    for (size_t at = resident; at < bytes; at += PAGE)
        *(volatile char *)(area + at) = 1;
    if (bytes < resident)
        MUST(madvise(area + bytes, resident - bytes, MADV_DONTNEED) == 0);
    resident = bytes;
}

static size_t wanted(const char *kind, unsigned long ms)
{
    unsigned long mib = 1ul << 20, base = 8 * mib;
    if (!strcmp(kind, "grow"))
        return base + ms / STEP_MS * (mib / 4);
    if (!strcmp(kind, "warm")) {
        unsigned long left = ms < 4000 ? 4000 - ms : 0;
        return base + 40 * mib - left * left / 400 * (40 * mib / 40000);
    }
    if (!strcmp(kind, "cache"))
        return base + (ms < 6000 ? ms : 6000) * (32 * mib / 6000);
    /* More than a third of each cycle on the floor, so that a late sample finds it, too. */
    unsigned long rising = ms % 2400 < 900 ? 0 : ms % 2400 - 900;
    if (!strcmp(kind, "saw"))
        return base + rising * (16 * mib / 1500);
    if (!strcmp(kind, "saw-leak"))
        return base + rising * (16 * mib / 1500) + ms / 2400 * (3 * mib / 2);
    if (!strcmp(kind, "shrink")) {
        unsigned long gone = ms / STEP_MS * (50 << 10);
        return gone < 96 * mib ? base + 96 * mib - gone : base;
    }
    MUST(!strcmp(kind, "level"));
    return base;
}

static unsigned long now_ms(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    MUST(argc == 2);
    area = mmap(NULL, LARGEST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(area != MAP_FAILED);
    /* A huge page would be resident as a whole. */
    MUST(madvise(area, LARGEST, MADV_NOHUGEPAGE) == 0);
    hold(wanted(argv[1], 0));
    target_ready();
    unsigned long begin = now_ms();
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (poll(&input, 1, STEP_MS) == 0)
        hold(wanted(argv[1], now_ms() - begin));
    return 0;
}
