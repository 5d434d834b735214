/* Three allocators in one process: the C library's, one whose functions begin with `je_`, and one with a prefix of its own,
 * which puts a header in front of blocks of the C library. And functions with such names that are none. */
#include "target.h"

/* Hands out pieces of a static arena, one behind the other. */
static _Alignas(16) char arena[1 << 16];
static size_t arena_used;

__attribute__((noipa)) void *je_malloc(size_t size)
{
    void *block = arena + arena_used;
    if (size > sizeof arena - arena_used)
        return NULL;
    arena_used += (size + 15) & ~15ul;
    return block;
}

__attribute__((noipa)) void *je_calloc(size_t count, size_t size)
{
    return je_malloc(count * size);
}

__attribute__((noipa)) void je_free(void *block)
{
    __asm__ volatile("" : : "r"(block) : "memory");
}

/* The pointer that the program gets is not the one that malloc gives. */
__attribute__((noipa)) void *pool_malloc(size_t size)
{
    char *block = malloc(size + 16);
    KEEP(block);
    return block + 16;
}

__attribute__((noipa)) void *pool_realloc(void *old, size_t size)
{
    char *block = realloc(old ? (char *)old - 16 : NULL, size + 16);
    KEEP(block);
    return block + 16;
}

__attribute__((noipa)) void pool_free(void *block)
{
    free((char *)block - 16);
}

/* No allocator: nothing behind this prefix allocates. */
__attribute__((noipa)) void rpfree(void *block)
{
    __asm__ volatile("" : : "r"(block) : "memory");
}

static SITE void site_je(void)
{
    KEEP(je_malloc(opaque(100)));
    KEEP(je_calloc(opaque(5), 40));
    void *gone = je_malloc(opaque(30));
    KEEP(gone);
    je_free(gone);
    MUST(!je_malloc(opaque(1 << 20)));
    expect("site_je", 300, 2, 330, 3);
}

/* What the prefix is not given for is seen as what it does with malloc. */
static SITE void site_pool(int is_prefix_given)
{
    KEEP(pool_malloc(opaque(1000)));
    void *gone = pool_malloc(opaque(500));
    KEEP(gone);
    pool_free(gone);
    KEEP(pool_realloc(pool_malloc(opaque(10)), opaque(200)));
    if (is_prefix_given)
        expect("site_pool", 1200, 2, 1710, 4);
    else
        expect("site_pool", 1232, 2, 1774, 4);
}

static SITE void site_libc(void)
{
    void *block = malloc(opaque(77));
    KEEP(block);
    rpfree(block);
    expect("site_libc", 77, 1, 77, 1);
}

int main(int count, char **arguments)
{
    (void)arguments;
    target_ready();
    site_je();
    site_pool(count > 1);
    site_libc();
    target_truth(1);
    return 0;
}
