// Load for long runs: threads that allocate and release at a given rate, each block counted by its call site, while at
// random moments (by a seed) one of them forks, executes, spawns, loads and unloads a library, makes threads, or throws.
//
//   soak RATE CHAOS_MS SEED PLUGIN   pairs per second in all (0: as many as it can), mean time between two disturbances of a
//                                    thread (0: none), the seed, the library
//   soak child                       what it executes: allocates, releases, ends
//
// Orders, each answered with `done`:
//
//   start      begins an epoch: counts from zero, threads begin
//   count      answers `pairs`, `live_bytes`, `live_count`, `children`, `libraries`, `threads`, `exceptions`
//   stop       the threads end, all children are waited for; what is in the slots stays
//   truth      says `truth {…}` of this epoch
//   clear      releases what is in the slots
//
// Counts are kept per thread and summed up: a block that another thread releases makes one negative, and the sum right.
#include "target.h"

#include <atomic>
#include <dlfcn.h>
#include <new>
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

// Not in the namespace: it is in the signature of a call site, whose name the harness takes apart.
struct Sums {
    long allocated_bytes, allocated_count, freed_bytes, freed_count;
};

namespace {

constexpr unsigned WORKERS = 4, SLOTS = 512, SHARED = 256, MAX_CHILDREN = 8, BATCH = 128, MAX_DEPTH = 12;
// One in this many blocks is kept for good.
constexpr unsigned KEPT_OF = 16384;
constexpr long LARGE_BYTES = 200 << 10;

enum Site { MALLOC, CALLOC, REALLOC, MEMALIGN, NEW, NEW_ARRAY, THROWN, CHURN, SITES };
constexpr const char *NAMES[SITES] = {"site_malloc", "site_calloc",    "site_realloc", "site_memalign",
                                      "site_new",    "site_new_array", "site_thrown",  "site_churn"};

struct Events {
    std::atomic<unsigned long> children, libraries, threads, exceptions;
};

// Stands at the begin of each block.
struct Head {
    unsigned size;
    unsigned site;
};

struct Worker {
    pthread_t thread;
    unsigned long random;
    std::atomic<unsigned long> pairs;
    // Read by others while it runs, written by one.
    std::atomic<long> live_bytes, live_count;
    Sums sums[SITES];
    Head *slots[SLOTS];
    pid_t children[MAX_CHILDREN];
    unsigned child_count;
};

struct Thrown {
    Head *block;
};

Worker workers[WORKERS];
std::atomic<Head *> shared[SHARED];
std::atomic<bool> is_running;
Events events;
unsigned long rate, chaos_ms;
const char *plugin_path;

unsigned long next(unsigned long &state)
{
    // xorshift64*, Vigna 2016.
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ul;
}

unsigned long below(Worker &worker, unsigned long limit)
{
    return (next(worker.random) >> 16) % limit;
}

void book(Sums *sums, const Head *block)
{
    sums[block->site].allocated_bytes += block->size;
    sums[block->site].allocated_count++;
}

void unbook(Sums *sums, const Head *block)
{
    sums[block->site].freed_bytes += block->size;
    sums[block->site].freed_count++;
}

Head *filled(void *memory, unsigned size, Site site)
{
    MUST(memory);
    auto *head = static_cast<Head *>(memory);
    head->size = size;
    head->site = site;
    return head;
}

// The call sites.

SITE Head *site_malloc(unsigned size)
{
    return filled(malloc(opaque(size)), size, MALLOC);
}

SITE Head *site_calloc(unsigned size)
{
    return filled(calloc(opaque(1), size), size, CALLOC);
}

// Grows once, and fails to grow once. The first block counts as allocated and freed.
SITE Head *site_realloc(Sums *sums, unsigned size)
{
    unsigned first_size = size / 2 + sizeof(Head);
    Head *first = filled(malloc(opaque(first_size)), first_size, REALLOC);
    book(sums, first);
    unbook(sums, first);
    MUST(!realloc(first, opaque(SIZE_MAX / 2 - 4096)));
    return filled(realloc(first, opaque(size)), size, REALLOC);
}

SITE Head *site_memalign(unsigned size)
{
    void *memory = nullptr;
    MUST(posix_memalign(&memory, 64, opaque(size)) == 0);
    return filled(memory, size, MEMALIGN);
}

SITE Head *site_new(unsigned size)
{
    return filled(::operator new(opaque(size)), size, NEW);
}

SITE Head *site_new_array(unsigned size)
{
    return filled(new char[opaque(size)], size, NEW_ARRAY);
}

// Its block leaves it with an exception; another one does not survive.
SITE void site_thrown(unsigned size)
{
    struct Guard {
        void *block;
        ~Guard() { free(block); }
    } guard{malloc(opaque(size))};
    KEEP(guard.block);
    throw Thrown{filled(malloc(opaque(size)), size, THROWN)};
}

SITE void thrower(unsigned depth, unsigned size)
{
    if (depth > 0)
        thrower(depth - 1, size);
    else
        site_thrown(size);
    __asm__ volatile("" : : : "memory");
}

SITE Head *catcher(unsigned depth, unsigned size)
{
    events.exceptions++;
    try {
        // operator new fails, and throws itself.
        KEEP(::operator new(opaque(SIZE_MAX / 2 - 4096)));
    } catch (const std::bad_alloc &) {
    }
    try {
        thrower(depth, size);
    } catch (const Thrown &thrown) {
        return thrown.block;
    }
    return nullptr;
}

SITE Head *allocate(Sums *sums, Site site, unsigned size)
{
    switch (site) {
    case MALLOC: return site_malloc(size);
    case CALLOC: return site_calloc(size);
    case REALLOC: return site_realloc(sums, size);
    case MEMALIGN: return site_memalign(size);
    case NEW: return site_new(size);
    default: return site_new_array(size);
    }
}

SITE Head *descend(unsigned depth, Sums *sums, Site site, unsigned size)
{
    Head *block = depth > 0 ? descend(depth - 1, sums, site, size) : allocate(sums, site, size);
    __asm__ volatile("" : : : "memory");
    return block;
}

void release(Sums *sums, Head *block)
{
    unbook(sums, block);
    if (block->site == NEW)
        ::operator delete(block);
    else if (block->site == NEW_ARRAY)
        delete[] reinterpret_cast<char *>(block);
    else
        free(block);
}

// Disturbances.

SITE void child_work()
{
    for (unsigned i = 0; i < 64; i++) {
        void *block = malloc(opaque(64 + i));
        KEEP(block);
        if (i % 8)
            free(block);
    }
}

void reap(Worker &worker, int flags)
{
    for (unsigned i = 0; i < worker.child_count;) {
        int status = 0;
        pid_t pid = waitpid(worker.children[i], &status, flags);
        MUST(pid >= 0);
        if (pid == 0) {
            i++;
            continue;
        }
        MUST(status == 0);
        worker.children[i] = worker.children[--worker.child_count];
    }
}

void make_child(Worker &worker, unsigned kind)
{
    char *arguments[] = {const_cast<char *>("soak"), const_cast<char *>("child"), nullptr};
    reap(worker, WNOHANG);
    if (worker.child_count == MAX_CHILDREN)
        return;
    pid_t pid = 0;
    if (kind == 0) {
        MUST(posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, arguments, environ) == 0);
    } else {
        pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            child_work();
            if (kind == 1)
                _exit(0);
            execv("/proc/self/exe", arguments);
            _exit(99);
        }
    }
    events.children++;
    worker.children[worker.child_count++] = pid;
}

void load_library(Worker &worker)
{
    void *library = dlopen(plugin_path, RTLD_NOW | RTLD_LOCAL);
    MUST(library);
    auto *work = reinterpret_cast<void (*)(unsigned long)>(dlsym(library, "site_plugin"));
    MUST(work);
    for (unsigned i = 0; i < 16; i++)
        work(16 + below(worker, 512));
    MUST(dlclose(library) == 0);
    events.libraries++;
}

struct Churn {
    unsigned long random;
    Sums sums[SITES];
    Head *kept;
};

SITE Head *site_churn(unsigned size)
{
    return filled(malloc(opaque(size)), size, CHURN);
}

void *churning_thread(void *argument)
{
    auto *churn = static_cast<Churn *>(argument);
    for (unsigned i = 0; i < 100; i++) {
        Head *block = site_churn(16 + (next(churn->random) >> 16) % 400);
        book(churn->sums, block);
        if (i == 50)
            churn->kept = block;
        else
            release(churn->sums, block);
    }
    return nullptr;
}

void add(Sums &sum, const Sums &other)
{
    sum.allocated_bytes += other.allocated_bytes;
    sum.allocated_count += other.allocated_count;
    sum.freed_bytes += other.freed_bytes;
    sum.freed_count += other.freed_count;
}

// A block that a thread leaves behind is released by another one.
void churn_threads(Worker &worker)
{
    Churn churns[4] = {};
    pthread_t threads[4];
    for (unsigned i = 0; i < 4; i++) {
        churns[i].random = next(worker.random) | 1;
        MUST(pthread_create(&threads[i], nullptr, churning_thread, &churns[i]) == 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        MUST(pthread_join(threads[i], nullptr) == 0);
        for (unsigned site = 0; site < SITES; site++)
            add(worker.sums[site], churns[i].sums[site]);
        release(worker.sums, churns[i].kept);
    }
    events.threads += 4;
}

void disturb(Worker &worker)
{
    switch (below(worker, 6)) {
    case 0: make_child(worker, 0); break;
    case 1: make_child(worker, 1); break;
    case 2: make_child(worker, 2); break;
    case 3: load_library(worker); break;
    default: churn_threads(worker); break;
    }
}

// The load.

Head *new_block(Worker &worker)
{
    unsigned size = static_cast<unsigned>(sizeof(Head) + 8 + below(worker, below(worker, 8) ? 200 : 3000));
    if (below(worker, 8192) == 0)
        size = LARGE_BYTES;
    unsigned depth = static_cast<unsigned>(below(worker, MAX_DEPTH));
    Head *block = below(worker, 2048) == 0 ? catcher(depth, size)
                                           : descend(depth, worker.sums, static_cast<Site>(below(worker, THROWN)), size);
    book(worker.sums, block);
    return block;
}

void one_pair(Worker &worker)
{
    Head *block = new_block(worker);
    unsigned long choice = next(worker.random) >> 16;
    Head *old;
    if (choice % KEPT_OF == 0)
        return KEEP(block), void(); // leaked
    if (choice & 1)
        old = shared[(choice >> 20) % SHARED].exchange(block);
    else {
        Head *&slot = worker.slots[(choice >> 20) % SLOTS];
        old = slot;
        slot = block;
    }
    if (old)
        release(worker.sums, old);
}

unsigned long now_ns()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<unsigned long>(now.tv_sec) * 1000000000ul + static_cast<unsigned long>(now.tv_nsec);
}

void publish(Worker &worker)
{
    long bytes = 0, count = 0;
    for (const Sums &sums : worker.sums) {
        bytes += sums.allocated_bytes - sums.freed_bytes;
        count += sums.allocated_count - sums.freed_count;
    }
    worker.live_bytes.store(bytes, std::memory_order_relaxed);
    worker.live_count.store(count, std::memory_order_relaxed);
}

void *work(void *argument)
{
    Worker &worker = *static_cast<Worker *>(argument);
    unsigned long began = now_ns(), done = 0;
    unsigned long mean_ns = chaos_ms * 1000000ul;
    unsigned long disturbed = began + (mean_ns ? below(worker, 2 * mean_ns) : 0);
    while (is_running.load(std::memory_order_relaxed)) {
        for (unsigned i = 0; i < BATCH; i++)
            one_pair(worker);
        done += BATCH;
        worker.pairs.fetch_add(BATCH, std::memory_order_relaxed);
        publish(worker);
        unsigned long now = now_ns();
        if (mean_ns && now >= disturbed) {
            disturb(worker);
            disturbed = now + below(worker, 2 * mean_ns);
        }
        unsigned long due = rate ? began + done * WORKERS * 1000000000ul / rate : 0;
        if (due > now) {
            timespec pause = {static_cast<time_t>((due - now) / 1000000000ul), static_cast<long>((due - now) % 1000000000ul)};
            nanosleep(&pause, nullptr);
        } else if (rate && now - due > 1000000000ul) {
            // Hopelessly late (it was stopped, or is slower than that): no burst afterwards.
            began = now - done * WORKERS * 1000000000ul / rate;
        }
    }
    reap(worker, 0);
    publish(worker);
    return nullptr;
}

void start()
{
    for (Worker &worker : workers) {
        memset(worker.sums, 0, sizeof worker.sums);
        worker.pairs = 0;
        publish(worker);
    }
    is_running = true;
    for (Worker &worker : workers)
        MUST(pthread_create(&worker.thread, nullptr, work, &worker) == 0);
}

void stop()
{
    is_running = false;
    for (Worker &worker : workers)
        MUST(pthread_join(worker.thread, nullptr) == 0);
}

void clear()
{
    for (Worker &worker : workers)
        for (Head *&slot : worker.slots)
            if (slot) {
                release(worker.sums, slot);
                slot = nullptr;
            }
    for (auto &slot : shared)
        if (Head *block = slot.exchange(nullptr))
            release(workers[0].sums, block);
}

void answer(const char *name, unsigned long value)
{
    char text[64];
    target_write(text, static_cast<size_t>(snprintf(text, sizeof text, "%s %lu\n", name, value)));
}

void count()
{
    unsigned long pairs = 0;
    long bytes = 0, blocks = 0;
    for (Worker &worker : workers) {
        pairs += worker.pairs;
        bytes += worker.live_bytes;
        blocks += worker.live_count;
    }
    answer("pairs", pairs);
    answer("live_bytes", static_cast<unsigned long>(bytes > 0 ? bytes : 0));
    answer("live_count", static_cast<unsigned long>(blocks > 0 ? blocks : 0));
    answer("children", events.children);
    answer("libraries", events.libraries);
    answer("threads", events.threads);
    answer("exceptions", events.exceptions);
}

// Of those that operator new or an exception calls for, the library allocates besides.
void truth()
{
    truth_size = 0;
    for (unsigned site = 0; site < SITES; site++) {
        Sums sum = {};
        for (const Worker &worker : workers)
            add(sum, worker.sums[site]);
        auto bytes = static_cast<unsigned long>(sum.allocated_bytes - sum.freed_bytes);
        auto blocks = static_cast<unsigned long>(sum.allocated_count - sum.freed_count);
        if (site < NEW || site == CHURN)
            expect(NAMES[site], bytes, blocks, static_cast<unsigned long>(sum.allocated_bytes),
                   static_cast<unsigned long>(sum.allocated_count));
        else
            expect_outstanding(NAMES[site], bytes, blocks);
    }
    expect_outstanding("site_plugin", 0, 0);
    target_say("truth {\"is_strict\":false,\"sites\":[");
    target_write(truth_text, truth_size);
    target_say("]}\n");
}

} // namespace

int main(int argc, char **argv)
{
    char line[64];
    if (argc == 2 && !strcmp(argv[1], "child")) {
        child_work();
        return 0;
    }
    MUST(argc == 5);
    rate = strtoul(argv[1], nullptr, 10);
    chaos_ms = strtoul(argv[2], nullptr, 10);
    unsigned long seed = strtoul(argv[3], nullptr, 10) * 2654435761ul + 1;
    plugin_path = argv[4];
    for (Worker &worker : workers)
        worker.random = next(seed);
    target_say("ready\n");
    while (target_line(line, sizeof line)) {
        if (!strcmp(line, "start"))
            start();
        else if (!strcmp(line, "count"))
            count();
        else if (!strcmp(line, "stop"))
            stop();
        else if (!strcmp(line, "truth")) {
            truth();
            continue;
        } else if (!strcmp(line, "clear"))
            clear();
        else
            return 94;
        target_say("done\n");
    }
    return 0;
}
