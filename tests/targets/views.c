/* Memory by every key that a report can sum by: functions, objects, start routines, sizes.
 *
 * main: site_main 10 x 24 bytes, and 8 nodes of a tree that the C library allocates for it;
 * two threads with the start routine `run_small`: each site_small 5 x 100 bytes and site_shared 1 x 3000;
 * one thread with the start routine `run_large`: site_large 3 x 5000 and 1 x 70000, and site_shared 2 x 3000.
 */
#include <pthread.h>
#include <search.h>
#include "target.h"

#define TREE_NODES 8

static SITE void site_main(void)
{
    for (int i = 0; i < 10; i++)
        KEEP(malloc(opaque(24)));
}

static SITE void site_small(void)
{
    for (int i = 0; i < 5; i++)
        KEEP(malloc(opaque(100)));
}

static SITE void site_large(void)
{
    for (int i = 0; i < 3; i++)
        KEEP(malloc(opaque(5000)));
    KEEP(calloc(7, opaque(10000)));
}

static SITE void site_shared(unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        KEEP(malloc(opaque(3000)));
}

static SITE void *run_small(void *unused)
{
    site_small();
    site_shared(1);
    __asm__ volatile("" : : : "memory");
    return unused;
}

static SITE void *run_large(void *unused)
{
    site_large();
    site_shared(2);
    __asm__ volatile("" : : : "memory");
    return unused;
}

static int compare(const void *left, const void *right)
{
    uintptr_t a = (uintptr_t)left, b = (uintptr_t)right;
    return a < b ? -1 : a > b;
}

static SITE void plant(void)
{
    static void *root;
    for (uintptr_t i = 1; i <= TREE_NODES; i++)
        MUST(tsearch((void *)i, &root, compare) != NULL);
    KEEP(root);
}

int main(void)
{
    target_ready();
    pthread_t threads[3];
    void *(*routines[3])(void *) = {run_small, run_small, run_large};
    for (int i = 0; i < 3; i++)
        MUST(pthread_create(&threads[i], NULL, routines[i], NULL) == 0);
    for (int i = 0; i < 3; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    site_main();
    plant();
    expect("site_main", 240, 10, 240, 10);
    expect("site_small", 1000, 10, 1000, 10);
    expect("site_large", 85000, 4, 85000, 4);
    expect("site_shared", 12000, 4, 12000, 4);
    target_truth(0);
    return 0;
}
