/* Does what it is told, line by line, and answers each order with `done`. Its children do the same: they hear through
 * their parent.
 *
 *   leak COUNT BYTES        allocates blocks
 *   keep COUNT BYTES        allocates blocks, and remembers them
 *   drop                    releases what is remembered: in a child, copies of what its parent remembers
 *   fork                    makes a child, and says `child PID`
 *   to INDEX ORDER          hands an order to a child; INDEX from 0
 *   end INDEX               ends a child, and waits for it
 *   brief COUNT             makes children that leak one block and exit at once, one after the other
 *   sharing COUNT BYTES     a child that shares the memory (CLONE_VM | CLONE_VFORK) allocates blocks and exits
 *   exec                    runs this program anew, which says `ready`
 *   hold                    makes a child that runs this program anew and stands still before its first instruction
 *   unhold                  kills that child
 *   open PATH               loads a library
 *   via COUNT BYTES         allocates blocks by the `malloc` of that library
 */
#define _GNU_SOURCE
#include "target.h"

#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { MAX_CHILDREN = 8, MAX_KEPT = 64, SHARED_STACK_BYTES = 64 << 10 };

static struct {
    pid_t pid;
    int input, output;
} children[MAX_CHILDREN];
static unsigned child_count;
static void *kept[MAX_KEPT];
static unsigned long kept_count;
static void *(*library_malloc)(size_t);

static SITE void site_leak(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

static SITE void site_keep(unsigned long count, unsigned long bytes)
{
    MUST(kept_count + count <= MAX_KEPT);
    for (unsigned long i = 0; i < count; i++)
        kept[kept_count++] = malloc(bytes);
}

static SITE void site_drop(void)
{
    while (kept_count > 0)
        free(kept[--kept_count]);
}

static SITE void site_via_library(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(library_malloc(bytes));
}

static unsigned long shared_count, shared_bytes;

static SITE void site_sharing(void)
{
    for (unsigned long i = 0; i < shared_count; i++)
        KEEP(malloc(shared_bytes));
}

static int shared_child(void *unused)
{
    (void)unused;
    site_sharing();
    return 0;
}

static void share(unsigned long count, unsigned long bytes)
{
    static char stack[SHARED_STACK_BYTES] __attribute__((aligned(64)));
    shared_count = count;
    shared_bytes = bytes;
    pid_t child = clone(shared_child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    int status;
    MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

/* In the child: its standard input and output are the pipes to its parent. */
static int become_child(int input[2], int output[2])
{
    MUST(dup2(input[0], 0) == 0 && dup2(output[1], 1) == 1);
    for (int i = 0; i < 2; i++) {
        close(input[i]);
        close(output[i]);
    }
    child_count = 0;
    return 1;
}

static int make_child(void)
{
    int input[2], output[2];
    MUST(child_count < MAX_CHILDREN && pipe(input) == 0 && pipe(output) == 0);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0)
        return become_child(input, output);
    close(input[0]);
    close(output[1]);
    children[child_count].pid = pid;
    children[child_count].input = input[1];
    children[child_count++].output = output[0];
    char text[32];
    snprintf(text, sizeof text, "child %d\n", (int)pid);
    target_say(text);
    return 0;
}

static void hand_over(unsigned long index, const char *order)
{
    char byte, last = 0;
    MUST(index < child_count);
    size_t size = strlen(order);
    MUST(write(children[index].input, order, size) == (ssize_t)size && write(children[index].input, "\n", 1) == 1);
    /* Up to the end of `done`, or of `ready` after an exec. */
    while (read(children[index].output, &byte, 1) == 1 && !(byte == '\n' && (last == 'e' || last == 'y')))
        last = byte;
}

static void end_child(unsigned long index)
{
    int status;
    MUST(index < child_count);
    close(children[index].input);
    MUST(waitpid(children[index].pid, &status, 0) == children[index].pid && status == 0);
}

static void brief_children(unsigned long count)
{
    for (unsigned long i = 0; i < count; i++) {
        int status;
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            site_leak(1, 1);
            _exit(0);
        }
        MUST(waitpid(pid, &status, 0) == pid && status == 0);
    }
}

static pid_t held;

static void hold(char **argv)
{
    int status;
    char text[32];
    held = fork();
    MUST(held >= 0);
    if (held == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        execv("/proc/self/exe", argv);
        _exit(1);
    }
    /* A traced process stops at its exec, when the kernel has mapped the program and its dynamic linker. */
    MUST(waitpid(held, &status, 0) == held && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    snprintf(text, sizeof text, "child %d\n", (int)held);
    target_say(text);
}

static void unhold(void)
{
    int status;
    MUST(kill(held, SIGKILL) == 0 && waitpid(held, &status, 0) == held && WIFSIGNALED(status));
}

static void open_library(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    MUST(library);
    *(void **)&library_malloc = dlsym(library, "malloc");
    MUST(library_malloc && library_malloc != malloc);
}

int main(int argc, char **argv)
{
    char line[256], verb[16];
    (void)argc;
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long first = 0, second = 0;
        int rest = 0;
        if (sscanf(line, "%15s%n %lu %lu", verb, &rest, &first, &second) < 1)
            return 93;
        if (!strcmp(verb, "leak"))
            site_leak(first, second);
        else if (!strcmp(verb, "keep"))
            site_keep(first, second);
        else if (!strcmp(verb, "drop"))
            site_drop();
        else if (!strcmp(verb, "fork")) {
            if (make_child())
                continue; /* the parent answers */
        } else if (!strcmp(verb, "to"))
            hand_over(first, strchr(line + 3, ' ') + 1);
        else if (!strcmp(verb, "end"))
            end_child(first);
        else if (!strcmp(verb, "brief"))
            brief_children(first);
        else if (!strcmp(verb, "sharing"))
            share(first, second);
        else if (!strcmp(verb, "exec")) {
            execv("/proc/self/exe", argv);
            return 95;
        } else if (!strcmp(verb, "hold"))
            hold(argv);
        else if (!strcmp(verb, "unhold"))
            unhold();
        else if (!strcmp(verb, "open"))
            open_library(line + rest + 1);
        else if (!strcmp(verb, "via"))
            site_via_library(first, second);
        else
            return 94;
        target_say("done\n");
    }
    return 0;
}
