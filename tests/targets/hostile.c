/* Does what a tracer does not like, order by order, and answers each with `done`:
 *
 *   leak COUNT BYTES     allocates blocks from one site
 *   named COUNT BYTES    the same from a function whose name the test has overwritten in the file
 *   nop COUNT BYTES      the same through an allocator whose functions begin with a nop of five bytes
 *   unstack COUNT BYTES  the same from a stack whose upper part is not mapped any more
 *   map PATH             maps a file as code
 *   many COUNT           makes mappings that do not join
 *   code COUNT           maps its own first page as code, again and again
 *   call NAME            gives itself another name
 *   filter               installs a seccomp filter that kills for every system call it does not need
 *   forbidden            makes a system call that the filter kills for
 */
#include "target.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>

#define STACK_BYTES (1 << 20)

/* An allocator of its own that hands on to malloc. The probes find no better place than the nop: what follows it overwrites
 * the argument. From Linux 6.18 on the kernel puts a call there that ends in a system call. */
__asm__(".text\n"
        ".globl nop_malloc\n.type nop_malloc, @function\n"
        "nop_malloc:\n.cfi_startproc\n"
        ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
        "mov %rdi, %rdi\n"
        "sub $8, %rsp\n.cfi_adjust_cfa_offset 8\n"
        "call malloc@PLT\n"
        "add $8, %rsp\n.cfi_adjust_cfa_offset -8\n"
        "ret\n.cfi_endproc\n.size nop_malloc, .-nop_malloc\n"
        ".globl nop_free\n.type nop_free, @function\n"
        "nop_free:\n.cfi_startproc\n"
        ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
        "mov %rdi, %rdi\n"
        "sub $8, %rsp\n.cfi_adjust_cfa_offset 8\n"
        "call free@PLT\n"
        "add $8, %rsp\n.cfi_adjust_cfa_offset -8\n"
        "ret\n.cfi_endproc\n.size nop_free, .-nop_free\n");
void *nop_malloc(size_t size);
void nop_free(void *block);

static SITE void site_leak(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

SITE void site_named_placeholder_0123456789abcd(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

static SITE void site_nop(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++) {
        KEEP(nop_malloc(bytes));
        void *block = nop_malloc(bytes);
        KEEP(block);
        nop_free(block);
    }
}

static ucontext_t main_context, other_context;
static char *other_stack;
static unsigned long unstack_count, unstack_bytes;

static SITE void site_unstacked(unsigned long count, unsigned long bytes)
{
    for (unsigned long i = 0; i < count; i++)
        KEEP(malloc(bytes));
}

static SITE void deep(int depth)
{
    char frame[64 << 10];
    __asm__ volatile("" : : "r"(frame) : "memory");
    if (depth > 0) {
        deep(depth - 1);
    } else {
        uintptr_t cut = ((uintptr_t)__builtin_frame_address(0) + 8192) & ~(uintptr_t)4095;
        uintptr_t end = (uintptr_t)other_stack + STACK_BYTES;
        MUST(cut < end && munmap((void *)cut, end - cut) == 0);
        site_unstacked(unstack_count, unstack_bytes);
        setcontext(&main_context);
    }
    __asm__ volatile("" : : "r"(frame) : "memory");
}

static void on_other_stack(void)
{
    deep(4);
}

static void unstack(unsigned long count, unsigned long bytes)
{
    volatile int is_back = 0;
    other_stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(other_stack != MAP_FAILED);
    unstack_count = count;
    unstack_bytes = bytes;
    MUST(getcontext(&main_context) == 0);
    if (is_back)
        return;
    is_back = 1;
    MUST(getcontext(&other_context) == 0);
    other_context.uc_stack.ss_sp = other_stack;
    other_context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&other_context, on_other_stack, 0);
    setcontext(&other_context);
}

static void map_file(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY);
    MUST(fd >= 0 && fstat(fd, &status) == 0);
    MUST(mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) != MAP_FAILED);
    close(fd);
}

/* Every other page is taken out of one mapping. */
static void map_many(unsigned long count)
{
    char *pages = mmap(NULL, 2 * count * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(pages != MAP_FAILED);
    for (unsigned long i = 0; i < count; i++)
        MUST(mprotect(pages + 2 * i * 4096, 4096, PROT_NONE) == 0);
}

static void map_code(unsigned long count)
{
    int fd = open("/proc/self/exe", O_RDONLY);
    MUST(fd >= 0);
    for (unsigned long i = 0; i < count; i++)
        MUST(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) != MAP_FAILED);
    close(fd);
}

#define ALLOW(number) \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void install_filter(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_exit_group), ALLOW(SYS_brk), ALLOW(SYS_mmap),
        ALLOW(SYS_munmap), ALLOW(SYS_mremap), ALLOW(SYS_mprotect), ALLOW(SYS_madvise), ALLOW(SYS_futex),
        ALLOW(SYS_rt_sigreturn), ALLOW(SYS_getrandom),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog filter = { .len = sizeof code / sizeof *code, .filter = code };
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
}

int main(void)
{
    static char line[5000], verb[16], word[4096];
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        unsigned long first = 0, second = 0;
        if (sscanf(line, "%15s", verb) < 1)
            return 93;
        sscanf(line, "%*s %lu %lu", &first, &second);
        if (!strcmp(verb, "leak"))
            site_leak(first, second);
        else if (!strcmp(verb, "named"))
            site_named_placeholder_0123456789abcd(first, second);
        else if (!strcmp(verb, "nop"))
            site_nop(first, second);
        else if (!strcmp(verb, "unstack"))
            unstack(first, second);
        else if (!strcmp(verb, "map") && sscanf(line, "%*s %4095s", word) == 1)
            map_file(word);
        else if (!strcmp(verb, "many"))
            map_many(first);
        else if (!strcmp(verb, "code"))
            map_code(first);
        else if (!strcmp(verb, "call"))
            MUST(prctl(PR_SET_NAME, line + 5) == 0);
        else if (!strcmp(verb, "filter"))
            install_filter();
        else if (!strcmp(verb, "forbidden"))
            syscall(SYS_getppid);
        else
            return 94;
        target_say("done\n");
    }
    return 0;
}
