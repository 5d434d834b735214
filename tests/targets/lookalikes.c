/* Calls that look alike where they allocate: the same return address and stack pointer, from different callers. In one pair the
 * frame pointer tells them apart, in the other only what is on the stack.
 *
 * A tracer that remembers stacks by what is on top of them books one caller's blocks on the other.
 */
#include "target.h"

enum { ROUNDS = 20000, NEAR_BYTES = 16, FAR_BYTES = 272 };

/* Where the stack ended at the call of malloc: the same in both of a pair, or this proves nothing. */
static void *shared_end, *framed_end;

static void same_end(void **end)
{
    void *here;
#ifdef __x86_64__
    __asm__ volatile("mov %%rsp, %0" : "=r"(here));
#else
    __asm__ volatile("mov %0, sp" : "=r"(here));
#endif
    if (!*end)
        *end = here;
    MUST(*end == here);
}

static __attribute__((noipa)) void *shared(size_t size)
{
    same_end(&shared_end);
    void *block = malloc(size);
    KEEP(block);
    return block;
}

#define CALLS_SHARED(name)                                                                                             \
    static SITE void *name(size_t size)                                                                                \
    {                                                                                                                  \
        void *block = shared(size);                                                                                    \
        KEEP(block);                                                                                                   \
        return block;                                                                                                  \
    }
CALLS_SHARED(site_left)
CALLS_SHARED(site_right)

/* Its caller is found by its frame pointer only, for nobody but it knows how much room it has taken. */
static __attribute__((noipa)) void *framed(size_t room, size_t size)
{
    volatile char *area = __builtin_alloca(room);
    area[0] = 1;
    same_end(&framed_end);
    void *block = malloc(size);
    KEEP(block);
    area[1] = 1;
    return block;
}

/* Takes some room itself and has the other take the rest. */
#define CALLS_FRAMED(name, own, others)                                                                                \
    static SITE void *name(size_t size)                                                                                \
    {                                                                                                                  \
        volatile char *area = __builtin_alloca(opaque(own));                                                           \
        area[0] = 1;                                                                                                   \
        void *block = framed(opaque(others), size);                                                                    \
        area[1] = 1;                                                                                                   \
        return block;                                                                                                  \
    }
CALLS_FRAMED(site_near, NEAR_BYTES, FAR_BYTES)
CALLS_FRAMED(site_far, FAR_BYTES, NEAR_BYTES)

int main(void)
{
    static void *(*const sites[])(size_t) = {site_left, site_right, site_near, site_far};
    static const char *const names[] = {"site_left", "site_right", "site_near", "site_far"};
    unsigned long allocated[4] = {0}, kept[4] = {0};
    uint32_t random = 1;
    target_ready();
    for (int round = 0; round < ROUNDS; round++) {
        random = random * 1664525 + 1013904223;
        unsigned site = random >> 30;
        size_t size = 10 + site;
        void *block = sites[site](size);
        allocated[site]++;
        if (random >> 20 & 3)
            free(block);
        else
            kept[site]++;
    }
    for (unsigned site = 0; site < 4; site++)
        expect(names[site], kept[site] * (10 + site), kept[site], allocated[site] * (10 + site), allocated[site]);
    target_truth(1);
    return 0;
}
