/* Loaded and unloaded again and again by the target `soak`. Whatever it allocates it releases. */
#include <stdlib.h>

__attribute__((noipa)) void site_plugin(unsigned long bytes)
{
    void *volatile block = malloc(bytes);
    free(block);
}
