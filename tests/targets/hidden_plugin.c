/* A library with jemalloc linked into it, all of whose symbols are hidden: the symbol table has them as local ones. */
#include "target.h"

__attribute__((visibility("default"))) SITE void site_plugin(int count)
{
    for (int i = 0; i < count; i++)
        KEEP(malloc(opaque(300)));
    void *gone = calloc(opaque(10), 10);
    KEEP(gone);
    free(gone);
}
