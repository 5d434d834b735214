// C++: allocations through operator new, containers and templates, in threads too, and exceptions that leave
// operator new. The stack of each leak must run through the frames of the standard library to its site.
#include "target.h"

#include <array>
#include <map>
#include <memory>
#include <new>
#include <semaphore.h>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Unavailable {
    int bytes;
};

struct Widget {
    std::array<char, 120> state;
};

template <typename T> SITE void site_template(int count)
{
    for (int i = 0; i < count; i++)
        KEEP(new T());
}

SITE void site_vector()
{
    auto *leaked = new std::vector<int>(1000);
    KEEP(leaked);
    std::vector<std::string> gone;
    for (int i = 0; i < 40; i++)
        gone.emplace_back(100, 'x');
    KEEP(gone.data());
    expect_outstanding("site_vector", sizeof *leaked + 4000, 2);
}

SITE void site_map()
{
    std::map<int, Widget> gone;
    for (int i = 0; i < 40; i++)
        gone[i].state[0] = 1;
    KEEP(&gone);
    expect_outstanding("site_map", 0, 0);
}

void no_memory()
{
    throw Unavailable{7};
}

// malloc fails inside operator new, and the handler's exception leaves it.
SITE void site_throwing_new()
{
    std::set_new_handler(no_memory);
    int caught = 0;
    for (int i = 0; i < 20; i++) {
        try {
            KEEP(::operator new(opaque(SIZE_MAX / 2 - 4096)));
        } catch (const Unavailable &unavailable) {
            caught += unavailable.bytes;
        }
    }
    MUST(caught == 140);
    KEEP(::operator new(88));
    expect_outstanding("site_throwing_new", 88, 1);
}

// The constructor throws: the language releases the block.
struct Refusing {
    std::array<char, 64> state;
    Refusing()
    {
        if (opaque(1))
            throw Unavailable{1};
    }
};

SITE void site_throwing_constructor()
{
    int caught = 0;
    for (int i = 0; i < 10; i++) {
        try {
            KEEP(new Refusing());
        } catch (const Unavailable &) {
            caught++;
        }
    }
    MUST(caught == 10);
    expect_outstanding("site_throwing_constructor", 0, 0);
}

SITE void site_aligned_new()
{
    struct alignas(128) Wide {
        char bytes[256];
    };
    KEEP(new Wide());
    delete new Wide();
    expect_outstanding("site_aligned_new", 256, 1);
}

SITE void site_thread(int count)
{
    for (int i = 0; i < count; i++)
        KEEP(new char[72]);
}

} // namespace

int main()
{
    sem_t go, done;
    sem_init(&go, 0, 0);
    sem_init(&done, 0, 0);
    std::array<std::thread, 4> threads;
    for (auto &thread : threads)
        thread = std::thread([&] {
            sem_wait(&go);
            site_thread(25);
            sem_post(&done);
            pause();
        });
    target_ready();

    site_template<Widget>(5);
    site_template<std::array<char, 33>>(2);
    expect("site_template", 5 * 120 + 2 * 33, 7, 5 * 120 + 2 * 33, 7);
    site_vector();
    site_map();
    site_throwing_new();
    site_throwing_constructor();
    site_aligned_new();
    for (size_t i = 0; i < threads.size(); i++)
        sem_post(&go);
    for (size_t i = 0; i < threads.size(); i++)
        sem_wait(&done);
    expect("site_thread", 4 * 25 * 72, 100, 4 * 25 * 72, 100);

    target_truth(1);
    _exit(0);
}
