/* Page faults of a child, copies on write on both sides, and of the program that an exec begins. `faults_family fork` or
 * `faults_family exec`. */
#define _GNU_SOURCE
#include "target.h"

#include <sys/mman.h>
#include <sys/wait.h>

#define PAGE 4096UL
#define MIB (1UL << 20)

static void expect_resident(const char *function, unsigned long bytes)
{
    truth_add("%s{\"lens\":\"faults\",\"function\":\"%s\",\"outstanding_bytes\":%lu,\"outstanding_count\":%lu}",
              truth_size ? "," : "", function, bytes, bytes / PAGE);
}

static char *map(size_t bytes)
{
    char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(base != MAP_FAILED && madvise(base, bytes, MADV_NOHUGEPAGE) == 0);
    return base;
}

static void touch(volatile char *base, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += PAGE)
        base[at] = 1;
}

#define TOUCHES(name) \
    static SITE void name(char *base, size_t bytes) \
    { \
        touch(base, bytes); \
        KEEP(base); \
    }

TOUCHES(site_parent)
TOUCHES(site_parent_copies)
TOUCHES(site_child_copies)
TOUCHES(site_child_own)
TOUCHES(site_before_exec)
TOUCHES(site_after_exec)

/* Copies that variable of this process's own. */
static SITE void keep_nothing(void)
{
    KEEP(NULL);
}

static void run_fork(void)
{
    char *older = map(8 * MIB), *common = map(6 * MIB);
    touch(older, 8 * MIB);
    KEEP(older);
    target_ready();
    site_parent(common, 6 * MIB);
    int to_parent[2], to_child[2];
    MUST(pipe(to_parent) == 0 && pipe(to_child) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    char byte = 1;
    keep_nothing();
    if (child == 0) {
        close(to_child[1]);
        site_child_copies(older, 2 * MIB);
        site_child_copies(common, MIB);
        site_child_own(map(3 * MIB), 3 * MIB);
        MUST(write(to_parent[1], &byte, 1) == 1);
        /* Until the parent has ended. */
        while (read(to_child[0], &byte, 1) > 0) {
        }
        _exit(0);
    }
    close(to_child[0]);
    MUST(read(to_parent[0], &byte, 1) == 1);
    site_parent_copies(common + 5 * MIB, MIB);
    expect_resident("site_parent", 5 * MIB);
    expect_resident("site_parent_copies", MIB);
    expect_resident("site_child_copies", 3 * MIB);
    expect_resident("site_child_own", 3 * MIB);
    target_truth(0);
    close(to_child[1]);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "fork") == 0) {
        run_fork();
    } else if (argc > 1 && strcmp(argv[1], "exec") == 0) {
        target_ready();
        site_before_exec(map(4 * MIB), 4 * MIB);
        execl("/proc/self/exe", argv[0], "again", NULL);
        return 94;
    } else {
        char line[16];
        target_say("ready\n");
        KEEP(line);
        MUST(target_line(line, sizeof line));
        site_after_exec(map(2 * MIB), 2 * MIB);
        expect_resident("site_before_exec", 0);
        expect_resident("site_after_exec", 2 * MIB);
        target_truth(0);
    }
    return 0;
}
