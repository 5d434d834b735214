/* What a program allocates before main, and its exit status: for `record -- COMMAND`. */
#include "target.h"

static SITE void site_constructor(void)
{
    for (int i = 0; i < 4; i++)
        KEEP(malloc(111));
    expect("site_constructor", 444, 4, 444, 4);
}

static __attribute__((constructor)) void before_main(void)
{
    site_constructor();
}

static SITE void site_main(void)
{
    KEEP(malloc(222));
    expect("site_main", 222, 1, 222, 1);
}

int main(int argc, char **argv)
{
    site_main();
    target_truth(1);
    return argc > 1 ? atoi(argv[1]) : 0;
}
