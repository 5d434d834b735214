/* Loads a library that has an allocator of its own, hidden. Both allocators work; each block goes back to its own. */
#define _GNU_SOURCE
#include "target.h"

#include <dlfcn.h>

static SITE void site_host(void)
{
    KEEP(malloc(opaque(40)));
    void *gone = malloc(opaque(50));
    KEEP(gone);
    free(gone);
    expect("site_host", 40, 1, 90, 2);
}

int main(int count, char **arguments)
{
    MUST(count == 2);
    void *plugin = dlopen(arguments[1], RTLD_NOW);
    MUST(plugin);
    void (*site_plugin)(int) = (void (*)(int))dlsym(plugin, "site_plugin");
    MUST(site_plugin);
    site_plugin(1);
    target_ready();
    site_host();
    site_plugin(8);
    expect("site_plugin", 2400, 8, 2500, 9);
    target_truth(1);
    return 0;
}
