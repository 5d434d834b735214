/* A program that does not leak: balanced work, and a cache that was filled before the attach and is renewed. */
#include "target.h"

enum { CACHE_SLOTS = 500, CACHE_BYTES = 64, ROUNDS = 1500 };

static void *cache[CACHE_SLOTS];

static SITE void site_balanced(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        void *block = malloc(opaque(200));
        KEEP(block);
        free(block);
    }
    expect("site_balanced", 0, 0, ROUNDS * 200ul, ROUNDS);
}

/* The first renewal releases blocks of before the attach, the second its own. */
static SITE void site_cache(void)
{
    for (int slot = 0; slot < 2 * CACHE_SLOTS; slot++) {
        free(cache[slot % CACHE_SLOTS]);
        cache[slot % CACHE_SLOTS] = malloc(CACHE_BYTES);
    }
    expect("site_cache", 0, 0, 2ul * CACHE_SLOTS * CACHE_BYTES, 2 * CACHE_SLOTS);
}

static void empty_cache(void)
{
    for (int slot = 0; slot < CACHE_SLOTS; slot++)
        free(cache[slot]);
}

int main(void)
{
    for (int slot = 0; slot < CACHE_SLOTS; slot++)
        cache[slot] = malloc(CACHE_BYTES);
    target_ready();
    site_balanced();
    site_cache();
    empty_cache();
    target_truth(1);
    return 0;
}
