/* Does what it is told, line by line, and answers each with `done`:
 *
 *   leak COUNT BYTES     allocates blocks from one site
 *   stacks COUNT BYTES   allocates blocks from COUNT different stacks
 *   balance COUNT BYTES  allocates and releases
 *   hoard COUNT BYTES    allocates blocks from one site, and then releases them all
 *   resize COUNT BYTES   a block that is resized COUNT times, by BYTES more and less, and released
 *   regrow COUNT BYTES   blocks that are resized to three times BYTES and kept
 *   exit STATUS          ends
 */
#include "target.h"

static SITE void site_leak(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

static SITE void site_stacks(unsigned long depth, unsigned long bytes)
{
    if (depth > 0)
        site_stacks(depth - 1, bytes);
    else
        KEEP(malloc(bytes));
    __asm__ volatile("" : : : "memory");
}

static SITE void site_balance(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++) {
        void *block = malloc(bytes);
        KEEP(block);
        free(block);
    }
}

/* Blocks are chained through themselves: nothing else is allocated. */
static SITE void site_hoard(unsigned long count, unsigned long bytes)
{
    void **last = NULL;
    MUST(bytes >= sizeof *last);
    for (unsigned long i = 0; i < count; i++) {
        void **block = malloc(bytes);
        MUST(block);
        *block = last;
        last = block;
    }
    while (last) {
        void **next = *last;
        free(last);
        last = next;
    }
}

static SITE void site_resize(unsigned long count, unsigned long bytes)
{
    void *block = malloc(bytes);
    for (unsigned long i = 0; i < count; i++) {
        block = realloc(block, opaque(i % 2 ? bytes : 20 * bytes));
        KEEP(block);
    }
    free(block);
}

static SITE void site_regrow(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(realloc(malloc(bytes), opaque(3 * bytes)));
}

int main(void)
{
    char line[128], verb[16];
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long first = 0, second = 0;
        if (sscanf(line, "%15s %lu %lu", verb, &first, &second) < 1)
            return 93;
        if (!strcmp(verb, "leak"))
            site_leak(first, second);
        else if (!strcmp(verb, "stacks"))
            for (unsigned long depth = 0; depth < first; depth++)
                site_stacks(depth, second);
        else if (!strcmp(verb, "balance"))
            site_balance(first, second);
        else if (!strcmp(verb, "hoard"))
            site_hoard(first, second);
        else if (!strcmp(verb, "resize"))
            site_resize(first, second);
        else if (!strcmp(verb, "regrow"))
            site_regrow(first, second);
        else if (!strcmp(verb, "exit"))
            return (int)first;
        else
            return 94;
        target_say("done\n");
    }
    return 0;
}
