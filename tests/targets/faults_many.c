/* Touches more pages than are kept: a gibibyte, every fourth block of 2 MiB by one function, the rest by another. The
 * addresses are fixed, so that every run draws the same sample. */
#define _GNU_SOURCE
#include "target.h"

#include <sys/mman.h>

#define PAGE 4096UL
#define BLOCK (2UL << 20)
#define BYTES (1UL << 30)

static SITE void site_quarter(volatile char *block)
{
    for (size_t at = 0; at < BLOCK; at += PAGE)
        block[at] = 1;
}

static SITE void site_rest(volatile char *block)
{
    for (size_t at = 0; at < BLOCK; at += PAGE)
        block[at] = 1;
}

int main(void)
{
    char *base = mmap((void *)0x200000000000, BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
    MUST(base == (char *)0x200000000000 && madvise(base, BYTES, MADV_NOHUGEPAGE) == 0);
    target_ready();
    for (size_t block = 0; block < BYTES / BLOCK; block++) {
        if (block % 4 == 0)
            site_quarter(base + block * BLOCK);
        else
            site_rest(base + block * BLOCK);
    }
    target_truth(0);
    return 0;
}
