/* jemalloc's own functions. xallocx resizes in place or not at all, and returns the real size. */
#include "target.h"

#include <jemalloc/jemalloc.h>

static SITE void site_mallocx(void)
{
    KEEP(mallocx(opaque(100), 0));
    KEEP(mallocx(opaque(500), MALLOCX_ALIGN(256) | MALLOCX_ZERO));
    void *gone = mallocx(opaque(60), 0);
    KEEP(gone);
    dallocx(gone, 0);
    gone = mallocx(opaque(70), 0);
    KEEP(gone);
    sdallocx(gone, opaque(70), 0);
    expect("site_mallocx", 600, 2, 730, 4);
}

static SITE void *site_rallocx_origin(void)
{
    void *block = mallocx(opaque(100), 0);
    KEEP(block);
    expect("site_rallocx_origin", 0, 0, 100, 1);
    return block;
}

static SITE void site_rallocx(void)
{
    KEEP(rallocx(site_rallocx_origin(), opaque(5000), 0));
    expect("site_rallocx", 5000, 1, 5000, 1);
}

static SITE void *site_in_place_origin(size_t size)
{
    void *block = mallocx(opaque(size), 0);
    KEEP(block);
    return block;
}

/* Within the size class: it has the room already. */
static SITE void site_xallocx_fits(void)
{
    void *block = site_in_place_origin(100);
    size_t real = xallocx(block, opaque(101), 0, 0);
    MUST(real >= 101);
    expect("site_xallocx_fits", 101, 1, 101, 1);
}

/* Some of the extra bytes, but not all of them. */
static SITE void site_xallocx_extra(void)
{
    void *block = site_in_place_origin(100);
    size_t real = xallocx(block, opaque(100), opaque(1000), 0);
    MUST(real >= 100 && real < 1100);
    expect("site_xallocx_extra", real, 1, real, 1);
}

static SITE void *site_no_room_origin(void)
{
    void *block = mallocx(opaque(100), 0);
    KEEP(block);
    expect("site_no_room_origin", 100, 1, 100, 1);
    return block;
}

/* The block stays what it was, and belongs to who allocated it. */
static SITE void site_xallocx_fails(void)
{
    MUST(xallocx(site_no_room_origin(), opaque(100000), 0, 0) < 100000);
    void *block = site_in_place_origin(90);
    MUST(xallocx(block, opaque(100000), 0, 0) < 100000);
    dallocx(block, 0);
    expect("site_xallocx_fails", 0, 0, 0, 0);
}

int main(void)
{
    free(KEEP(malloc(opaque(1))));
    target_ready();
    site_mallocx();
    site_rallocx();
    site_xallocx_fits();
    site_xallocx_extra();
    site_xallocx_fails();
    expect("site_in_place_origin", 0, 0, 290, 3);
    target_truth(1);
    return 0;
}
