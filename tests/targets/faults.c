/* Makes pages resident in every way there is, each in a function of its own. The truth is in pages that are resident at
 * the end, by function. */
#define _GNU_SOURCE
#include "target.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static void expect_resident(const char *function, unsigned long bytes)
{
    truth_add("%s{\"lens\":\"faults\",\"function\":\"%s\",\"outstanding_bytes\":%lu,\"outstanding_count\":%lu}",
              truth_size ? "," : "", function, bytes, bytes / PAGE);
}

/* Without a neighbour that the kernel could merge it with, and without huge pages. */
static char *map(size_t bytes)
{
    char *base = mmap(NULL, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(base != MAP_FAILED);
    MUST(mprotect(base + PAGE, bytes, PROT_READ | PROT_WRITE) == 0);
    MUST(madvise(base + PAGE, bytes, MADV_NOHUGEPAGE) == 0);
    return base + PAGE;
}

static void touch(volatile char *base, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += PAGE)
        base[at] = 1;
}

static SITE void site_touch(char *base, size_t bytes)
{
    touch(base, bytes);
    KEEP(base);
}

static SITE void site_untouched(void)
{
    char *block = malloc(opaque(64 * MIB));
    MUST(block);
    KEEP(block);
    expect_resident("site_untouched", PAGE); /* the header that malloc writes */
}

static SITE void site_read(volatile char *base, size_t bytes)
{
    char sum = 0;
    for (size_t at = 0; at < bytes; at += PAGE)
        sum += base[at];
    MUST(sum == 0);
}

static SITE void site_write_after_read(char *base, size_t bytes)
{
    touch(base, bytes);
    KEEP(base);
}

static SITE void site_first_owner(char *base, size_t bytes)
{
    touch(base, bytes);
    KEEP(base);
}

static SITE void site_second_owner(char *base, size_t bytes)
{
    touch(base, bytes);
    KEEP(base);
}

static SITE void site_unmapped(void)
{
    char *base = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(base != MAP_FAILED);
    touch(base, 4 * MIB);
    MUST(munmap(base, 4 * MIB) == 0);
}

static SITE void site_huge(char *base, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 2 * MIB)
        ((volatile char *)base)[at + 5 * PAGE] = 1;
    KEEP(base);
}

static SITE void site_file(const volatile char *base, size_t bytes)
{
    char sum = 0;
    for (size_t at = 0; at < bytes; at += 16 * PAGE)
        sum += base[at];
    MUST(sum == 0);
}

static SITE void site_memfd(char *base, size_t bytes)
{
    touch(base, bytes);
    KEEP(base);
}

static volatile int stack_is_used;

static SITE void site_stack(int depth)
{
    volatile char frame[16 * PAGE];
    for (size_t at = 0; at < sizeof frame; at += PAGE)
        frame[at] = 1;
    if (depth > 0)
        site_stack(depth - 1);
    frame[0] = 2;
}

static SITE void site_kernel(char *base, size_t bytes, int file)
{
    MUST(pread(file, base, bytes, 0) == (ssize_t)bytes);
    KEEP(base);
}

static SITE void site_moved(char *base, size_t bytes)
{
    touch(base, bytes);
    KEEP(base);
}

/* Where others have just moved away. */
static SITE void site_reused(char *base, size_t bytes)
{
    MUST(mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == base);
    MUST(madvise(base, bytes, MADV_NOHUGEPAGE) == 0);
    touch(base, bytes);
    KEEP(base);
}

static SITE void site_populated(void)
{
    char *base = mmap(NULL, 3 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    MUST(base != MAP_FAILED);
    KEEP(base);
}

static void *run_stack(void *unused)
{
    (void)unused;
    site_stack(7);
    stack_is_used = 1;
    for (;;)
        pause();
    return NULL;
}

static SITE void huge(void)
{
    char *base = mmap(NULL, 12 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(base != MAP_FAILED);
    char *aligned = (char *)(((uintptr_t)base + 2 * MIB - 1) & ~(2 * MIB - 1));
    MUST(madvise(aligned, 8 * MIB, MADV_HUGEPAGE) == 0);
    site_huge(aligned, 8 * MIB);
    /* The kernel says what it has given. */
    unsigned char resident[8 * MIB / PAGE];
    MUST(mincore(aligned, 8 * MIB, resident) == 0);
    unsigned long pages = 0;
    for (size_t index = 0; index < sizeof resident; index++)
        pages += resident[index] & 1;
    expect_resident("site_huge", pages * PAGE);
}

int main(void)
{
    int file = memfd_create("plain", 0);
    MUST(file >= 0 && ftruncate(file, 8 * MIB) == 0);
    char path[] = "/tmp/offheap-faults-XXXXXX";
    int on_disk = mkstemp(path);
    MUST(on_disk >= 0 && unlink(path) == 0);
    static char zeroes[MIB];
    for (int index = 0; index < 4; index++)
        MUST(write(on_disk, zeroes, sizeof zeroes) == sizeof zeroes);
    char *touched = map(10 * MIB), *read_first = map(4 * MIB), *given_back = map(6 * MIB), *filled = map(2 * MIB);
    char *moving = map(4 * MIB), *before = map(5 * MIB);
    touch(before, 5 * MIB);
    /* What is no page of a site is there already: the variable, and the code and the data of malloc. */
    KEEP(before);
    void *warm = malloc(opaque(64 * MIB));
    KEEP(warm);
    free(warm);
    MUST(pread(on_disk, zeroes, 1, 0) == 1);
    target_ready();

    site_touch(touched, 10 * MIB);
    expect_resident("site_touch", 10 * MIB);
    site_untouched();

    site_read(read_first, 4 * MIB);
    expect_resident("site_read", 0);
    site_write_after_read(read_first, MIB);
    expect_resident("site_write_after_read", MIB);

    site_first_owner(given_back, 6 * MIB);
    MUST(madvise(given_back, 3 * MIB, MADV_DONTNEED) == 0);
    site_second_owner(given_back, 2 * MIB);
    expect_resident("site_first_owner", 3 * MIB);
    expect_resident("site_second_owner", 2 * MIB);

    site_unmapped();
    expect_resident("site_unmapped", 0);
    huge();

    /* At a multiple of what one fault maps, so that every window is whole. */
    char *window = mmap(NULL, 4 * MIB + 64 * 1024, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(window != MAP_FAILED);
    window = (char *)(((uintptr_t)window + 65535) & ~65535UL);
    const char *mapped = mmap(window, 4 * MIB, PROT_READ, MAP_SHARED | MAP_FIXED, on_disk, 0);
    MUST(mapped != MAP_FAILED);
    site_file(mapped, 4 * MIB);
    expect_resident("site_file", 4 * MIB);

    char *shared = mmap(NULL, 3 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    MUST(shared != MAP_FAILED);
    site_memfd(shared, 3 * MIB);
    expect_resident("site_memfd", 3 * MIB);

    site_kernel(filled, 2 * MIB, on_disk);
    expect_resident("site_kernel", 2 * MIB);

    site_moved(moving, 4 * MIB);
    char *place = mmap(NULL, 16 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(place != MAP_FAILED);
    MUST(mremap(moving, 4 * MIB, 8 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
    expect_resident("site_moved", 4 * MIB);
    site_reused(moving, 2 * MIB);
    expect_resident("site_reused", 2 * MIB);

    site_populated();
    expect_resident("site_populated", 3 * MIB);

    pthread_t thread;
    MUST(pthread_create(&thread, NULL, run_stack, NULL) == 0);
    while (!stack_is_used)
        usleep(1000);

    /* Given back, though it was there before. */
    MUST(madvise(before, MIB, MADV_DONTNEED) == 0);
    target_truth(0);
    return 0;
}
