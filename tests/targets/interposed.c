/* Allocator functions that the executable itself defines: they are probed there, only the outermost call of a
 * thread counts, and one that is left by longjmp does not make the thread blind. */
#define _GNU_SOURCE
#include "target.h"

#include <alloca.h>
#include <setjmp.h>

#define EXPORT __attribute__((visibility("default"), noipa))

static jmp_buf way_out;
static int leave_by_longjmp;

/* Calls malloc and free inside: only the call of pvalloc counts, with its own size. */
EXPORT void *pvalloc(size_t size)
{
    void *block = malloc(opaque(size + 1000));
    void *scratch = malloc(opaque(8));
    KEEP(scratch);
    free(scratch);
    KEEP(block);
    return block;
}

/* Left by longjmp if told so. */
EXPORT void *valloc(size_t size)
{
    if (leave_by_longjmp)
        longjmp(way_out, 1);
    void *block = malloc(opaque(size));
    KEEP(block);
    return block;
}

/* Compiled to a jump: malloc is entered with the same stack pointer. */
EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    (void)alignment;
    return malloc(size);
}

/* A resize that allocates, copies and releases. */
EXPORT void *reallocarray(void *old, size_t count, size_t size)
{
    void *block = malloc(opaque(count * size));
    MUST(block);
    memcpy(block, old, 16);
    free(old);
    KEEP(block);
    return block;
}

/* Releases that never reach the C library's free: only who probes them sees them. */
static void *volatile pool;
EXPORT void cfree(void *block)
{
    pool = block;
}
EXPORT void free_sized(void *block, size_t size)
{
    pool = block;
    (void)opaque(size);
}
EXPORT void free_aligned_sized(void *block, size_t alignment, size_t size)
{
    pool = block;
    (void)opaque(size + alignment);
}

static SITE void site_nested(void)
{
    for (int i = 0; i < 3; i++)
        KEEP(pvalloc(100));
    expect("site_nested", 300, 3, 300, 3);
}

static SITE void site_tail_call(void)
{
    KEEP(aligned_alloc(16, opaque(160)));
    expect("site_tail_call", 160, 1, 160, 1);
}

static SITE void *site_resize_origin(void)
{
    void *block = malloc(40);
    KEEP(block);
    expect("site_resize_origin", 0, 0, 40, 1);
    return block;
}

static SITE void site_resize(void)
{
    KEEP(reallocarray(site_resize_origin(), opaque(5), 50));
    expect("site_resize", 250, 1, 250, 1);
}

static SITE void site_released(void)
{
    cfree(KEEP(malloc(11)));
    free_sized(KEEP(malloc(22)), 22);
    free_aligned_sized(KEEP(malloc(33)), 16, 33);
    KEEP(malloc(44));
    expect("site_released", 44, 1, 110, 4);
}

/* Goes down the stack before it calls, so that later calls enter above. */
static SITE void site_left_by_longjmp(int depth)
{
    char *room = (char *)alloca(512);
    __asm__ volatile("" : : "r"(room) : "memory");
    if (depth > 0)
        site_left_by_longjmp(depth - 1);
    else
        KEEP(valloc(999));
    __asm__ volatile("" : : "r"(room) : "memory");
}

static SITE void site_after_longjmp(void)
{
    for (int i = 0; i < 3; i++)
        KEEP(malloc(321));
    expect("site_left_by_longjmp", 0, 0, 0, 0);
    expect("site_after_longjmp", 963, 3, 963, 3);
}

static SITE void site_valloc_again(void)
{
    leave_by_longjmp = 0;
    KEEP(valloc(70));
    expect("site_valloc_again", 70, 1, 70, 1);
}

int main(void)
{
    target_ready();
    site_nested();
    site_tail_call();
    site_resize();
    site_released();
    leave_by_longjmp = 1;
    if (!setjmp(way_out)) {
        site_left_by_longjmp(8);
        MUST(0);
    }
    site_after_longjmp();
    site_valloc_again();
    target_truth(1);
    return 0;
}
