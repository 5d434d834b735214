/* A target for the ledger: each order makes memory of one kind resident, and says how much.
 *
 * Orders: `live N`, `holes N`, `arenas N`, `stacks N`, `ended N`, `memfd N`, `mmap N`, `large N`; N in MiB, of stacks and
 * arenas their number. The answer is `grown BYTES`, then `done`.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>

#include "target.h"

#define MIB ((size_t)1 << 20)
#define BLOCK 200

static pthread_barrier_t barrier;

static void *touched(void *memory, size_t size)
{
    MUST(memory != NULL && memory != MAP_FAILED);
    memset(memory, 1, size);
    /* Nobody reads it: the compiler must not know. */
    __asm__ volatile("" : : "r"(memory) : "memory");
    return memory;
}

/* A list of small blocks of this many bytes together; the first word of each is the next one. */
static void **blocks(size_t bytes)
{
    void **first = NULL;
    for (size_t got = 0; got < bytes; got += BLOCK + 8) {
        void **block = touched(malloc(BLOCK), BLOCK);
        *block = first;
        first = block;
    }
    return first;
}

/* Frees all but each `kept`-th block; those that are freed lie between others. */
static void thin_out(void **block, size_t kept)
{
    for (size_t index = 0; block != NULL; index++) {
        void **next = *block;
        if (kept == 0 || index % kept != 0)
            free(block);
        else
            KEEP(block);
        block = next;
    }
}

static void *hold_stack(void *size)
{
    char room[MIB];
    touched(room, (size_t)size);
    pthread_barrier_wait(&barrier);
    for (;;)
        pause();
    return NULL;
}

static void *end_stack(void *size)
{
    char room[MIB];
    touched(room, (size_t)size);
    pthread_barrier_wait(&barrier);
    return NULL;
}

/* What a thread frees stays in its arena: the last block keeps the rest from being given back. */
static void *fill_arena(void *size)
{
    void **all = blocks((size_t)size);
    KEEP(touched(malloc(BLOCK), BLOCK));
    thin_out(all, 0);
    pthread_barrier_wait(&barrier);
    for (;;)
        pause();
    return NULL;
}

static void threads(void *(*work)(void *), size_t count, size_t size, int is_joined)
{
    pthread_t ids[64];
    MUST(count <= 64 && pthread_barrier_init(&barrier, NULL, (unsigned)count + 1) == 0);
    for (size_t index = 0; index < count; index++) {
        MUST(pthread_create(&ids[index], NULL, work, (void *)size) == 0);
        MUST(pthread_setname_np(ids[index], "worker") == 0);
    }
    pthread_barrier_wait(&barrier);
    for (size_t index = 0; is_joined && index < count; index++)
        MUST(pthread_join(ids[index], NULL) == 0);
}

static size_t obey(const char *order, size_t number)
{
    size_t size = number * MIB;
    if (strcmp(order, "live") == 0) {
        KEEP(blocks(size));
    } else if (strcmp(order, "holes") == 0) {
        /* One of 15 blocks, which are 3120 bytes, is kept: nearly every page keeps one. */
        thin_out(blocks(size), 15);
        return size / 15 * 14;
    } else if (strcmp(order, "arenas") == 0) {
        threads(fill_arena, number, 8 * MIB, 0);
        return 8 * MIB * number;
    } else if (strcmp(order, "stacks") == 0) {
        threads(hold_stack, number, MIB / 2, 0);
        return number * MIB / 2;
    } else if (strcmp(order, "ended") == 0) {
        threads(end_stack, number, MIB / 2, 1);
        return number * MIB / 2;
    } else if (strcmp(order, "memfd") == 0) {
        int file = memfd_create("frame pool", 0);
        MUST(file >= 0 && ftruncate(file, (off_t)size) == 0);
        touched(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), size);
    } else if (strcmp(order, "mmap") == 0) {
        touched(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), size);
    } else if (strcmp(order, "large") == 0) {
        KEEP(touched(malloc(size), size));
    } else {
        MUST(!"order");
    }
    return size;
}

int main(void)
{
    char line[64], order[32], answer[64];
    size_t number;
    /* Blocks of a megabyte and more have a mapping of their own, also when such have been freed. */
    MUST(mallopt(M_MMAP_THRESHOLD, (int)MIB) == 1);
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        MUST(sscanf(line, "%31s %zu", order, &number) == 2);
        snprintf(answer, sizeof answer, "grown %zu\n", obey(order, number));
        target_say(answer);
        target_say("done\n");
    }
    return 0;
}
