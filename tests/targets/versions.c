/* A server of which there are two builds: with REBUILT, its code lies elsewhere. Does what it is told, line by line,
 * and answers each with `done`:
 *
 *   grow COUNT BYTES    allocates from one site and keeps it
 *   hold COUNT BYTES    allocates from another
 *   drop COUNT          frees that many blocks of `hold`, the oldest first
 *   same COUNT BYTES    allocates from a third
 *   fresh COUNT BYTES   allocates from a fourth
 */
#include "target.h"

#define MOST_HELD 1000

static void *held[MOST_HELD];
static unsigned long held_from, held_to;

#ifdef REBUILT
/* Shifts what follows, and is reached, so that it is kept. */
static SITE unsigned long added(unsigned long seed)
{
    for (unsigned long i = 0; i < opaque(7); i++)
        seed = seed * 6364136223846793005ul + 1442695040888963407ul + (seed >> 3) * (seed ^ 0x55aaul);
    return seed;
}
#endif

static SITE void site_grow(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

static SITE void site_hold(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++) {
        MUST(held_to < MOST_HELD);
        held[held_to++] = malloc(bytes);
    }
}

static SITE void drop_held(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        MUST(held_from < held_to);
        free(held[held_from++]);
    }
}

static SITE void site_same(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

static SITE void site_fresh(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

int main(void)
{
    char line[128], verb[16];
#ifdef REBUILT
    KEEP((void *)added(opaque(3)));
#endif
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long first = 0, second = 0;
        if (sscanf(line, "%15s %lu %lu", verb, &first, &second) < 1)
            return 93;
        if (!strcmp(verb, "grow"))
            site_grow(first, second);
        else if (!strcmp(verb, "hold"))
            site_hold(first, second);
        else if (!strcmp(verb, "drop"))
            drop_held(first);
        else if (!strcmp(verb, "same"))
            site_same(first, second);
        else if (!strcmp(verb, "fresh"))
            site_fresh(first, second);
        else
            return 94;
        target_say("done\n");
    }
    return 0;
}
