/* The C functions alone, linked in every way that there is. */
#define _GNU_SOURCE
#include "c_forms.h"

int main(void)
{
    /* Whatever an allocator does on its first call is done before the attach. */
    free(KEEP(malloc(opaque(1))));
    target_ready();
    all_c_forms();
    target_truth(1);
    return 0;
}
