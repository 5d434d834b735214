#include "leak.h"

#include <pthread.h>
#include <stdlib.h>

#include "_cgo_export.h"

static void *volatile kept;

__attribute__((noipa)) void site_go_c(size_t size)
{
    kept = malloc(size);
}

/* rbp is a general register here: what Go finds there when the call returns is what it was. */
__attribute__((noipa)) void call_back(int depth, size_t size)
{
    goCallback(depth, size);
    __asm__ volatile("" ::: "memory");
}

struct order {
    int depth;
    size_t size;
};

static void *thread(void *argument)
{
    struct order *order = argument;
    call_back(order->depth, order->size);
    return NULL;
}

int call_back_on_thread(int depth, size_t size)
{
    struct order order = {depth, size};
    pthread_t id;
    if (pthread_create(&id, NULL, thread, &order) != 0)
        return 0;
    return pthread_join(id, NULL) == 0;
}
