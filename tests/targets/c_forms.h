/* The C functions that every allocator has, with what is true under all of them. */
#ifndef C_FORMS_H
#define C_FORMS_H

#include "target.h"

#include <errno.h>
#include <malloc.h>

#define HUGE_BYTES opaque(SIZE_MAX / 2 - 4096)

static SITE void site_malloc(void)
{
    for (int i = 0; i < 300; i++)
        KEEP(malloc(opaque(40)));
    for (size_t size = 1; size <= 1 << 20; size *= 4) {
        void *block = malloc(opaque(size));
        KEEP(block);
        free(block);
    }
    /* 1 + 4 + ... + 4^10 */
    expect("site_malloc", 12000, 300, 12000 + 1398101, 311);
}

static SITE void site_calloc(void)
{
    KEEP(calloc(opaque(7), 11));
    MUST(!calloc(opaque(SIZE_MAX / 2), opaque(3)));
    expect("site_calloc", 77, 1, 77, 1);
}

static SITE void *site_origin(void)
{
    void *block = malloc(opaque(100));
    KEEP(block);
    return block;
}

static SITE void site_realloc(void)
{
    KEEP(realloc(NULL, opaque(10)));
    KEEP(realloc(site_origin(), opaque(100000)));
    KEEP(realloc(site_origin(), opaque(30)));
    MUST(!realloc(site_origin(), HUGE_BYTES));
    expect("site_origin", 100, 1, 300, 3);
    expect("site_realloc", 100040, 3, 100040, 3);
}

static SITE void site_reallocarray(void)
{
    KEEP(reallocarray(NULL, opaque(6), 9));
    expect("site_reallocarray", 54, 1, 54, 1);
}

static SITE void site_posix_memalign(void)
{
    void *block = NULL;
    MUST(posix_memalign(&block, 64, opaque(256)) == 0);
    KEEP(block);
    void *out = block;
    MUST(posix_memalign(&out, opaque(3), 128) == EINVAL);
    MUST(posix_memalign(&out, opaque(64), HUGE_BYTES) == ENOMEM);
    expect("site_posix_memalign", 256, 1, 256, 1);
}

static SITE void site_c_aligned(void)
{
    KEEP(aligned_alloc(64, opaque(640)));
    KEEP(memalign(32, opaque(96)));
    void *gone = memalign(256, opaque(512));
    KEEP(gone);
    free(gone);
    expect("site_c_aligned", 736, 2, 1248, 3);
}

static SITE void site_valloc(void)
{
    KEEP(valloc(opaque(123)));
    expect("site_valloc", 123, 1, 123, 1);
}

static void all_c_forms(void)
{
    site_malloc();
    site_calloc();
    site_realloc();
    site_reallocarray();
    site_posix_memalign();
    site_c_aligned();
    site_valloc();
}

#endif
