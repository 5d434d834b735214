/* mimalloc under its own names, beside the malloc that it takes the place of. */
#include "target.h"

#include <mimalloc.h>

static SITE void site_plain(void)
{
    KEEP(mi_malloc(opaque(10)));
    KEEP(mi_zalloc(opaque(20)));
    KEEP(mi_calloc(opaque(3), 10));
    KEEP(mi_mallocn(opaque(4), 10));
    KEEP(mi_malloc_small(opaque(50)));
    KEEP(mi_zalloc_small(opaque(60)));
    MUST(!mi_mallocn(opaque(SIZE_MAX / 2), opaque(3)));
    expect("site_plain", 210, 6, 210, 6);
}

static SITE void *site_origin(void)
{
    void *block = mi_malloc(opaque(100));
    KEEP(block);
    return block;
}

static SITE void site_resized(void)
{
    KEEP(mi_realloc(site_origin(), opaque(3000)));
    KEEP(mi_reallocn(site_origin(), opaque(100), 40));
    KEEP(mi_rezalloc(site_origin(), opaque(5000)));
    KEEP(mi_recalloc(site_origin(), opaque(100), 60));
    KEEP(mi_reallocf(site_origin(), opaque(7000)));
    KEEP(mi_realloc_aligned(site_origin(), opaque(8000), 64));
    /* Unlike realloc, this one frees what it cannot resize. */
    MUST(!mi_reallocf(site_origin(), opaque(SIZE_MAX / 2 - 4096)));
    /* In place, or not at all. */
    void *block = site_origin();
    MUST(mi_expand(block, opaque(101)) == block);
    MUST(!mi_expand(site_origin(), opaque(100000)));
    expect("site_origin", 100, 1, 900, 9);
    expect("site_resized", 33101, 7, 33101, 7);
}

static SITE void site_aligned(void)
{
    KEEP(mi_malloc_aligned(opaque(100), 64));
    KEEP(mi_zalloc_aligned(opaque(200), 64));
    KEEP(mi_calloc_aligned(opaque(3), 100, 64));
    KEEP(mi_malloc_aligned_at(opaque(400), 64, 8));
    KEEP(mi_memalign(64, opaque(500)));
    KEEP(mi_aligned_alloc(64, opaque(640)));
    KEEP(mi_valloc(opaque(700)));
    void *out = NULL;
    MUST(mi_posix_memalign(&out, 64, opaque(800)) == 0);
    KEEP(out);
    expect("site_aligned", 3640, 8, 3640, 8);
}

static SITE void site_heap(mi_heap_t *heap)
{
    KEEP(mi_heap_malloc(heap, opaque(10)));
    KEEP(mi_heap_zalloc(heap, opaque(20)));
    KEEP(mi_heap_calloc(heap, opaque(3), 10));
    KEEP(mi_heap_mallocn(heap, opaque(4), 10));
    KEEP(mi_heap_malloc_small(heap, opaque(50)));
    KEEP(mi_heap_malloc_aligned(heap, opaque(60), 64));
    KEEP(mi_heap_realloc(heap, mi_heap_malloc(heap, opaque(1)), opaque(700)));
    KEEP(mi_heap_reallocn(heap, mi_heap_malloc(heap, opaque(1)), opaque(8), 100));
    KEEP(mi_heap_recalloc(heap, mi_heap_zalloc(heap, opaque(1)), opaque(9), 100));
    expect("site_heap", 2610, 9, 2613, 12);
}

static SITE void site_new(void)
{
    KEEP(mi_new(opaque(10)));
    KEEP(mi_new_n(opaque(2), 10));
    KEEP(mi_new_aligned(opaque(30), 64));
    KEEP(mi_new_nothrow(opaque(40)));
    KEEP(mi_new_aligned_nothrow(opaque(50), 64));
    KEEP(mi_new_realloc(mi_new(opaque(1)), opaque(6000)));
    KEEP(mi_new_reallocn(mi_new(opaque(1)), opaque(7), 1000));
    expect("site_new", 13150, 7, 13152, 9);
}

static SITE void site_released(void)
{
    mi_free(KEEP(mi_malloc(opaque(11))));
    mi_free_size(KEEP(mi_malloc(opaque(22))), 22);
    mi_free_aligned(KEEP(mi_malloc_aligned(opaque(33), 64)), 64);
    mi_free_size_aligned(KEEP(mi_malloc_aligned(opaque(44), 64)), 44, 64);
    free(KEEP(malloc(opaque(55))));
    free(KEEP(mi_malloc(opaque(66))));
    expect("site_released", 0, 0, 231, 6);
}

int main(void)
{
    free(KEEP(malloc(opaque(1))));
    mi_heap_t *heap = mi_heap_new();
    target_ready();
    site_plain();
    site_resized();
    site_aligned();
    site_heap(heap);
    site_new();
    site_released();
    target_truth(1);
    return 0;
}
