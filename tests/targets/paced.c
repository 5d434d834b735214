/* Allocates at a steady pace by its own CPU time, whatever else runs on the machine, and works all the time: each line `MILLISECONDS` is answered with `kept BLOCKS` and
 * `done`: how many blocks of 64 bytes are kept since the start.
 *
 * Every 20 us one block is allocated and released at `site_churn`, each tenth of these is resized before; every 100 us a block
 * is kept at `site_kept`. */
#include "target.h"

#include <time.h>

static unsigned long kept;

static SITE void site_churn(int resizes)
{
    void *block = malloc(opaque(100));
    KEEP(block);
    if (resizes)
        block = realloc(block, opaque(3000));
    KEEP(block);
    free(block);
}

static SITE void site_kept(void)
{
    KEEP(malloc(opaque(64)));
    kept++;
}

static unsigned long now_us(void)
{
    struct timespec now;
    MUST(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) == 0);
    return (unsigned long)now.tv_sec * 1000000ul + (unsigned long)now.tv_nsec / 1000ul;
}

int main(void)
{
    char line[64];
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long steps = strtoul(line, NULL, 10) * 50;
        if (steps == 0)
            return 93;
        unsigned long start = now_us();
        for (unsigned long step = 0; step < steps; step++) {
            site_churn(step % 10 == 0);
            if (step % 5 == 0)
                site_kept();
            while (now_us() < start + step * 20) {
            }
        }
        char answer[64];
        target_write(answer, (size_t)snprintf(answer, sizeof answer, "kept %lu\ndone\n", kept));
    }
    return 0;
}
