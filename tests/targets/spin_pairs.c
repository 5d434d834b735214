/* Times pairs of malloc and free at a given depth of the stack: `spin_pairs FRAMES`; each line `PAIRS` on standard
 * input is answered with `pairs NANOSECONDS`, the mean time of one pair. */
#include "target.h"

#include <time.h>

static SITE void spin(unsigned long pairs)
{
    for (unsigned long i = 0; i < pairs; i++) {
        void *block = malloc(opaque(64));
        KEEP(block);
        free(block);
    }
}

static SITE void descend(int frames, unsigned long pairs)
{
    if (frames > 0)
        descend(frames - 1, pairs);
    else
        spin(pairs);
    __asm__ volatile("" : : : "memory");
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

int main(int argc, char **argv)
{
    char line[64];
    /* Of the whole stack, six frames are there anyway: _start, two of the library, main, descend and spin. */
    int frames = argc > 1 ? atoi(argv[1]) - 6 : 0;
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long pairs = strtoul(line, NULL, 10);
        if (pairs == 0)
            return 93;
        double start = now_ns();
        descend(frames, pairs);
        double elapsed = now_ns() - start;
        char answer[64];
        target_write(answer, (size_t)snprintf(answer, sizeof answer, "pairs %.3f\n", elapsed / (double)pairs));
    }
    return 0;
}
