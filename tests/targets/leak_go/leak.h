/* C code that leaks for Go, calls back into Go, and starts a thread that Go does not know. */
#include <stddef.h>

void site_go_c(size_t size);
void call_back(int depth, size_t size);
int call_back_on_thread(int depth, size_t size);
