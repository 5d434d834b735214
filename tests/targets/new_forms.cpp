// The C functions, and every form of operator new and delete, under whatever allocator is preloaded: plain, array, nothrow, aligned, sized,
// from the fast paths and the slow ones; and exceptions that leave operator new, after which nothing may be missed.
#include "c_forms.h"

#include <dlfcn.h>
#include <new>
#include <semaphore.h>
#include <thread>

namespace {

constexpr std::align_val_t WIDE{128};

struct Unavailable {
    int bytes;
};

SITE void site_new()
{
    KEEP(::operator new(opaque(100)));
    void *gone = ::operator new(opaque(50));
    KEEP(gone);
    ::operator delete(gone);
    expect("site_new", 100, 1, 150, 2);
}

SITE void site_new_array()
{
    KEEP(::operator new[](opaque(200)));
    void *gone = ::operator new[](opaque(60));
    KEEP(gone);
    ::operator delete[](gone);
    expect("site_new_array", 200, 1, 260, 2);
}

SITE void site_sized()
{
    void *one = ::operator new(opaque(70));
    void *many = ::operator new[](opaque(80));
    KEEP(one);
    KEEP(many);
    ::operator delete(one, opaque(70));
    ::operator delete[](many, opaque(80));
    KEEP(::operator new(opaque(3)));
    expect("site_sized", 3, 1, 153, 3);
}

SITE void site_nothrow()
{
    KEEP(::operator new(opaque(11), std::nothrow));
    KEEP(::operator new[](opaque(22), std::nothrow));
    void *one = ::operator new(opaque(33), std::nothrow);
    void *many = ::operator new[](opaque(44), std::nothrow);
    KEEP(one);
    KEEP(many);
    ::operator delete(one, std::nothrow);
    ::operator delete[](many, std::nothrow);
    expect("site_nothrow", 33, 2, 110, 4);
}

SITE void site_aligned()
{
    KEEP(::operator new(opaque(128), WIDE));
    KEEP(::operator new[](opaque(256), WIDE));
    void *one = ::operator new(opaque(384), WIDE);
    void *many = ::operator new[](opaque(512), WIDE);
    KEEP(one);
    KEEP(many);
    ::operator delete(one, WIDE);
    ::operator delete[](many, WIDE);
    expect("site_aligned", 384, 2, 1280, 4);
}

SITE void site_aligned_sized()
{
    void *one = ::operator new(opaque(640), WIDE);
    void *many = ::operator new[](opaque(768), WIDE);
    KEEP(one);
    KEEP(many);
    ::operator delete(one, opaque(640), WIDE);
    ::operator delete[](many, opaque(768), WIDE);
    KEEP(::operator new(opaque(896), WIDE));
    expect("site_aligned_sized", 896, 1, 2304, 3);
}

SITE void site_aligned_nothrow()
{
    KEEP(::operator new(opaque(1024), WIDE, std::nothrow));
    KEEP(::operator new[](opaque(1152), WIDE, std::nothrow));
    void *one = ::operator new(opaque(1280), WIDE, std::nothrow);
    void *many = ::operator new[](opaque(1408), WIDE, std::nothrow);
    KEEP(one);
    KEEP(many);
    ::operator delete(one, WIDE, std::nothrow);
    ::operator delete[](many, WIDE, std::nothrow);
    expect("site_aligned_nothrow", 2176, 2, 4864, 4);
}

// Small ones from a thread's cache, and when that is empty, and from the large ones' ways.
SITE void site_every_way()
{
    unsigned long bytes = 0, count = 0;
    for (size_t size = 1; size <= (4u << 20); size += size / 3 + 1)
        for (int i = 0; i < 40; i++, count++, bytes += size) {
            void *block = ::operator new(opaque(size));
            KEEP(block);
            ::operator delete(block);
        }
    for (int i = 0; i < 500; i++)
        KEEP(::operator new(opaque(24)));
    expect("site_every_way", 500 * 24, 500, bytes + 500 * 24, count + 500);
}

// Goes down the stack, over where the frames of operator new have been.
SITE void site_deep_after_exception(int depth)
{
    char room[64];
    __asm__ volatile("" : : "r"(room) : "memory");
    if (depth > 0)
        site_deep_after_exception(depth - 1);
    else
        KEEP(::operator new(opaque(77)));
    __asm__ volatile("" : : "r"(room) : "memory");
}

SITE void site_huge()
{
    int caught = 0;
    for (int i = 0; i < 20; i++) {
        try {
            KEEP(::operator new(HUGE_BYTES));
        } catch (const std::bad_alloc &) {
            caught++;
            site_deep_after_exception(3);
        }
    }
    MUST(caught == 20);
    KEEP(::operator new(opaque(88)));
    expect_outstanding("site_huge", 88, 1);
    expect_outstanding("site_deep_after_exception", 20 * 77, 20);
}

void no_memory()
{
    throw Unavailable{7};
}

// The handler's exception comes through the allocator.
SITE void site_handler_throws()
{
    std::set_new_handler(no_memory);
    int caught = 0;
    for (int i = 0; i < 20; i++) {
        try {
            KEEP(::operator new[](HUGE_BYTES));
        } catch (const Unavailable &unavailable) {
            caught += unavailable.bytes;
        }
    }
    MUST(caught == 140);
    std::set_new_handler(nullptr);
    KEEP(::operator new(opaque(99)));
    expect_outstanding("site_handler_throws", 99, 1);
}

SITE void site_nothrow_huge()
{
    for (int i = 0; i < 5; i++)
        MUST(!::operator new(HUGE_BYTES, std::nothrow));
    KEEP(::operator new(opaque(66), std::nothrow));
    expect_outstanding("site_nothrow_huge", 66, 1);
}

SITE void site_thread(int count)
{
    for (int i = 0; i < count; i++) {
        void *block = ::operator new(opaque(72));
        KEEP(block);
        if (i % 2)
            ::operator delete(block);
    }
}

} // namespace

int main()
{
    // mimalloc, where it is compiled as C, aborts rather than throw.
    bool aborts = dlsym(RTLD_DEFAULT, "mi_version") != nullptr;
    sem_t go, done;
    sem_init(&go, 0, 0);
    sem_init(&done, 0, 0);
    std::thread threads[4];
    for (auto &thread : threads)
        thread = std::thread([&] {
            sem_wait(&go);
            site_thread(200);
            sem_post(&done);
            pause();
        });
    target_ready();

    all_c_forms();
    site_new();
    site_new_array();
    site_sized();
    site_nothrow();
    site_aligned();
    site_aligned_sized();
    site_aligned_nothrow();
    site_every_way();
    if (!aborts) {
        site_huge();
        site_handler_throws();
    }
    site_nothrow_huge();
    for (int i = 0; i < 4; i++)
        sem_post(&go);
    for (int i = 0; i < 4; i++)
        sem_wait(&done);
    expect("site_thread", 4 * 100 * 72, 400, 4 * 200 * 72, 800);

    target_truth(1);
    _exit(0);
}
