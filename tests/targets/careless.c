/* Provokes what an ordinary program does not: an allocator that breaks its promises (prefix `careless_`), stacks that cannot
 * be read, and more events than fit anywhere. Does what it is told, line by line, and answers each order with `done`:
 *
 *   leak COUNT BYTES       blocks from one site, by the careless allocator
 *   thread COUNT BYTES     the same in a new thread
 *   twice COUNT BYTES      the same address COUNT times, without a release
 *   overflow BYTES         a block though count times size overflows
 *   unreadable BYTES       an aligned block whose address stands in memory that cannot be read
 *   survive BYTES          fills up while a realloc is under way that fails: one more block than before
 *   broken COUNT BYTES     blocks, on a stack whose older half cannot be read
 *   broken_fault           a page that the kernel touches first, on such a stack
 *   race COUNT BYTES       COUNT stacks that two threads use for the first time at the same moment, a block in each
 *   map COUNT PAGES        mappings that stay
 *   balance COUNT PAGES    mappings that go again
 *   unmap COUNT            takes back the mappings of `map`, the oldest first
 *   code COUNT             executable mappings of this program's file, which go again
 *   populate COUNT PAGES   mappings that are populated at once
 *   touch PAGES            touches new memory, a page after the other
 *   reserve PAGES          maps memory and touches nothing; answers `address ADDRESS`
 *   segment COUNT          attaches and detaches shared memory segments
 *   spawn COUNT            executes `true`, with posix_spawn
 *   brief COUNT            children that exit at once
 *   quit                   ends
 */
#define _GNU_SOURCE
#include "target.h"

#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { PAGE = 4096, MAX_MAPPINGS = 4096, RACE_DEPTH = 12, STACK_PAGES = 16 };

extern char **environ;

/* The allocator: pieces of an arena, one behind the other. */

static _Alignas(16) char arena[8 << 20];
static _Atomic size_t arena_used;
static void *again; /* what the next allocation returns, if it is set */
static sem_t fill_go, fill_done;

__attribute__((noipa)) void *careless_malloc(size_t size)
{
    if (again)
        return again;
    size_t at = atomic_fetch_add(&arena_used, (size + 15) & ~15ul);
    return at + size > sizeof arena ? NULL : arena + at;
}

__attribute__((noipa)) void careless_free(void *block)
{
    __asm__ volatile("" : : "r"(block) : "memory");
}

/* Takes no notice of an overflow. */
__attribute__((noipa)) void *careless_calloc(size_t count, size_t size)
{
    __asm__ volatile("" : : "r"(count) : "memory");
    return arena + atomic_fetch_add(&arena_used, (size + 15) & ~15ul);
}

/* Always fails, and lets another thread allocate meanwhile. */
__attribute__((noipa)) void *careless_realloc(void *block, size_t size)
{
    __asm__ volatile("" : : "r"(block), "r"(size) : "memory");
    sem_post(&fill_go);
    while (sem_wait(&fill_done) != 0) {
    }
    return NULL;
}

/* Says that all is well, and writes nothing. */
__attribute__((noipa)) int careless_posix_memalign(void **out, size_t alignment, size_t size)
{
    __asm__ volatile("" : : "r"(out), "r"(alignment), "r"(size) : "memory");
    return 0;
}

static SITE void site_leak(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(careless_malloc(bytes));
}

static SITE void site_twice(unsigned long count, unsigned long bytes)
{
    again = arena + atomic_fetch_add(&arena_used, (bytes + 15) & ~15ul);
    for (unsigned long i = 0; i < count; i++)
        KEEP(careless_malloc(bytes));
    again = NULL;
}

static SITE void site_overflow(unsigned long bytes)
{
    KEEP(careless_calloc(opaque(SIZE_MAX / 2), bytes));
}

static void *map_pages(unsigned long pages, int protection, int flags)
{
    void *memory = mmap(NULL, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    MUST(memory != MAP_FAILED);
    return memory;
}

static SITE void site_unreadable(unsigned long bytes)
{
    void **out = map_pages(1, PROT_NONE, 0);
    MUST(careless_posix_memalign(out, 64, bytes) == 0);
    __asm__ volatile("" : : : "memory");
}

/* Threads. */

static unsigned long thread_count, thread_bytes;

static void *leaking_thread(void *unused)
{
    site_leak(thread_count, thread_bytes);
    return unused;
}

static void in_thread(void *(*body)(void *), unsigned long count, unsigned long bytes)
{
    pthread_t thread;
    thread_count = count;
    thread_bytes = bytes;
    MUST(pthread_create(&thread, NULL, body, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

static void *filling_thread(void *unused)
{
    while (sem_wait(&fill_go) != 0) {
    }
    site_leak(thread_count, thread_bytes);
    sem_post(&fill_done);
    return unused;
}

static SITE void site_survive(unsigned long bytes)
{
    pthread_t thread;
    void *block = careless_malloc(bytes);
    thread_count = 1;
    thread_bytes = bytes;
    MUST(pthread_create(&thread, NULL, filling_thread, NULL) == 0);
    MUST(!careless_realloc(block, 2 * bytes));
    MUST(pthread_join(thread, NULL) == 0);
}

/* A stack that is cut off: its upper neighbour cannot be read. The caller's frame is found by the stack pointer only, and
 * its return address would lie there. */

void on_stack(void *top, void (*body)(void));
__asm__(".text\n"
        ".type on_stack, @function\n"
        "on_stack:\n"
        ".cfi_startproc\n"
        "    push %rbx\n"
        ".cfi_adjust_cfa_offset 8\n"
        ".cfi_rel_offset rbx, 0\n"
        "    mov %rsp, %rbx\n"
        "    mov %rdi, %rsp\n"
        "    call *%rsi\n"
        "    mov %rbx, %rsp\n"
        "    pop %rbx\n"
        ".cfi_adjust_cfa_offset -8\n"
        ".cfi_restore rbx\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size on_stack, . - on_stack\n");

static unsigned long broken_count, broken_bytes;

static SITE void site_broken(void)
{
    for (unsigned long i = 0; i < broken_count; i++)
        KEEP(careless_malloc(broken_bytes));
}

static SITE void site_broken_fault(void)
{
    void *memory = map_pages(1, PROT_READ | PROT_WRITE, 0);
    int zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    MUST(zeros >= 0 && read(zeros, memory, PAGE) == PAGE);
    close(zeros);
    /* And one that the program touches. */
    char *own = map_pages(1, PROT_READ | PROT_WRITE, 0);
    own[0] = 1;
    KEEP(own);
}

static void on_broken_stack(void (*body)(void))
{
    char *stack = map_pages(2 * STACK_PAGES, PROT_READ | PROT_WRITE, 0);
    MUST(mprotect(stack + STACK_PAGES * PAGE, STACK_PAGES * PAGE, PROT_NONE) == 0);
    on_stack(stack + STACK_PAGES * PAGE, body);
}

/* Two threads on one stack after the other, each time at the same moment. */

static _Atomic unsigned long race_arrived;
static unsigned long race_count, race_bytes;

static SITE void race_step(unsigned long path, unsigned depth);

static SITE void race_left(unsigned long path, unsigned depth)
{
    race_step(path, depth);
    __asm__ volatile("" : : : "memory");
}

static SITE void race_right(unsigned long path, unsigned depth)
{
    race_step(path, depth);
    __asm__ volatile("" : : : "memory");
}

static SITE void site_race(unsigned long round)
{
    atomic_fetch_add(&race_arrived, 1);
    while (atomic_load(&race_arrived) < 2 * round + 2) {
    }
    KEEP(careless_malloc(race_bytes));
}

/* The bits of the round say which way the stack goes: every round has its own. */
static SITE void race_step(unsigned long path, unsigned depth)
{
    if (depth == RACE_DEPTH)
        site_race(path);
    else if ((path >> depth) & 1)
        race_left(path, depth + 1);
    else
        race_right(path, depth + 1);
    __asm__ volatile("" : : : "memory");
}

static void *racing_thread(void *unused)
{
    for (unsigned long round = 0; round < race_count; round++)
        race_step(round, 0);
    return unused;
}

static void race(unsigned long count, unsigned long bytes)
{
    pthread_t threads[2];
    MUST(count <= 1ul << RACE_DEPTH);
    race_count = count;
    race_bytes = bytes;
    for (int i = 0; i < 2; i++)
        MUST(pthread_create(&threads[i], NULL, racing_thread, NULL) == 0);
    for (int i = 0; i < 2; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
}

/* Mappings. */

static struct {
    void *memory;
    size_t bytes;
} mappings[MAX_MAPPINGS];
static unsigned long mapping_count, mappings_gone;

/* Every second one is read-only, lest neighbours become one. */
static SITE void site_map(unsigned long count, unsigned long pages)
{
    MUST(mapping_count + count <= MAX_MAPPINGS);
    for (unsigned long i = 0; i < count; i++) {
        mappings[mapping_count].bytes = pages * PAGE;
        mappings[mapping_count++].memory = map_pages(pages, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE, 0);
    }
}

static SITE void site_balance(unsigned long count, unsigned long pages)
{
    for (unsigned long i = 0; i < count; i++)
        MUST(munmap(map_pages(pages, PROT_READ | PROT_WRITE, 0), pages * PAGE) == 0);
}

static void unmap(unsigned long count)
{
    MUST(mappings_gone + count <= mapping_count);
    for (unsigned long i = 0; i < count; i++, mappings_gone++)
        MUST(munmap(mappings[mappings_gone].memory, mappings[mappings_gone].bytes) == 0);
}

static void map_code(unsigned long count)
{
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    MUST(file >= 0);
    for (unsigned long i = 0; i < count; i++) {
        void *code = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
        MUST(code != MAP_FAILED && munmap(code, PAGE) == 0);
    }
    close(file);
}

static SITE void site_populate(unsigned long count, unsigned long pages)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(map_pages(pages, PROT_READ | PROT_WRITE, MAP_POPULATE));
}

static SITE void site_touch(unsigned long pages)
{
    char *memory = map_pages(pages, PROT_READ | PROT_WRITE, 0);
    MUST(madvise(memory, pages * PAGE, MADV_NOHUGEPAGE) == 0);
    for (unsigned long i = 0; i < pages; i++)
        memory[i * PAGE] = 1;
}

static SITE void site_reserve(unsigned long pages)
{
    char text[64];
    void *memory = map_pages(pages, PROT_READ | PROT_WRITE, MAP_NORESERVE);
    target_write(text, (size_t)snprintf(text, sizeof text, "address %lu\n", (unsigned long)memory));
}

static void segments(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        int segment = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
        MUST(segment >= 0);
        void *memory = shmat(segment, NULL, 0);
        MUST(memory != (void *)-1 && shmdt(memory) == 0 && shmctl(segment, IPC_RMID, NULL) == 0);
    }
}

/* Children. */

static void reap(pid_t child)
{
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
}

static void spawn(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        pid_t child;
        char *const arguments[] = {(char *)"true", NULL};
        MUST(posix_spawnp(&child, "true", NULL, NULL, arguments, environ) == 0);
        reap(child);
    }
}

static void brief_children(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        pid_t child = fork();
        MUST(child >= 0);
        if (child == 0)
            _exit(0);
        reap(child);
    }
}

static int carry_out(const char *verb, unsigned long first, unsigned long second)
{
    if (!strcmp(verb, "leak"))
        site_leak(first, second);
    else if (!strcmp(verb, "thread"))
        in_thread(leaking_thread, first, second);
    else if (!strcmp(verb, "twice"))
        site_twice(first, second);
    else if (!strcmp(verb, "overflow"))
        site_overflow(first);
    else if (!strcmp(verb, "unreadable"))
        site_unreadable(first);
    else if (!strcmp(verb, "survive"))
        site_survive(first);
    else if (!strcmp(verb, "broken")) {
        broken_count = first;
        broken_bytes = second;
        on_broken_stack(site_broken);
    } else if (!strcmp(verb, "broken_fault"))
        on_broken_stack(site_broken_fault);
    else if (!strcmp(verb, "race"))
        race(first, second);
    else if (!strcmp(verb, "map"))
        site_map(first, second);
    else if (!strcmp(verb, "balance"))
        site_balance(first, second);
    else if (!strcmp(verb, "unmap"))
        unmap(first);
    else if (!strcmp(verb, "code"))
        map_code(first);
    else if (!strcmp(verb, "populate"))
        site_populate(first, second);
    else if (!strcmp(verb, "touch"))
        site_touch(first);
    else if (!strcmp(verb, "reserve"))
        site_reserve(first);
    else if (!strcmp(verb, "segment"))
        segments(first);
    else if (!strcmp(verb, "spawn"))
        spawn(first);
    else if (!strcmp(verb, "brief"))
        brief_children(first);
    else
        return 0;
    return 1;
}

int main(void)
{
    char line[128], verb[16];
    sem_init(&fill_go, 0, 0);
    sem_init(&fill_done, 0, 0);
    /* Before the attach: a thread's first allocation of the C library. */
    in_thread(leaking_thread, 0, 0);
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long first = 0, second = 0;
        if (sscanf(line, "%15s %lu %lu", verb, &first, &second) < 1)
            return 93;
        if (!strcmp(verb, "quit"))
            return 0;
        if (!carry_out(verb, first, second))
            return 94;
        target_say("done\n");
    }
    return 0;
}
