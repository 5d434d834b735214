/* What every C and C++ target needs: the handshake with the harness and the ground truth.
 *
 * The target prints `ready` and waits for a line, so that the tracer is attached before it goes on; at the end
 * it prints `truth {...}` and waits until its standard input is closed, so that it is alive when the recording ends.
 * Nothing here allocates: standard I/O is not used.
 */
#ifndef TARGET_H
#define TARGET_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Not inlined, not cloned, its return value not known to the caller: its frame is in the stack under its name. */
#define SITE __attribute__((noipa))

/* Keeps a pointer from being optimised away, and the call before it from becoming a tail call. */
static void *volatile target_kept;
#define KEEP(pointer) (target_kept = (pointer))

/* A size the compiler knows nothing about. */
static inline size_t opaque(size_t size)
{
    __asm__ volatile("" : "+r"(size));
    return size;
}

static inline void target_write(const char *text, size_t size)
{
    while (size > 0) {
        ssize_t written = write(1, text, size);
        if (written <= 0)
            _exit(90);
        text += written;
        size -= (size_t)written;
    }
}

static inline void target_say(const char *text)
{
    target_write(text, strlen(text));
}

/* Reads up to the end of a line; 0 when the input is closed. */
static inline int target_line(char *line, size_t capacity)
{
    size_t size = 0;
    char byte;
    for (;;) {
        ssize_t got = read(0, &byte, 1);
        if (got <= 0)
            return 0;
        if (byte == '\n') {
            line[size] = 0;
            return 1;
        }
        if (size + 1 < capacity)
            line[size++] = byte;
    }
}

/* Ends the target when something did not behave as the truth assumes. */
#define MUST(condition) \
    do { \
        if (!(condition)) { \
            target_say("broken: " #condition "\n"); \
            _exit(91); \
        } \
    } while (0)

static inline void target_ready(void)
{
    char line[16];
    target_say("ready\n");
    if (!target_line(line, sizeof line))
        _exit(92);
}

static char truth_text[16384];
static size_t truth_size;

static inline void truth_add(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int added = vsnprintf(truth_text + truth_size, sizeof truth_text - truth_size, format, arguments);
    va_end(arguments);
    MUST(added > 0 && (size_t)added < sizeof truth_text - truth_size);
    truth_size += (size_t)added;
}

/* What the tracer must find for the call site `function`. */
static inline void expect(const char *function, unsigned long outstanding_bytes, unsigned long outstanding_count,
                          unsigned long allocated_bytes, unsigned long allocated_count)
{
    truth_add("%s{\"function\":\"%s\",\"outstanding_bytes\":%lu,\"outstanding_count\":%lu,"
              "\"allocated_bytes\":%lu,\"allocated_count\":%lu}",
              truth_size ? "," : "", function, outstanding_bytes, outstanding_count, allocated_bytes,
              allocated_count);
}

/* The same, where how much was allocated on the way is the library's own business. */
static inline void expect_outstanding(const char *function, unsigned long bytes, unsigned long count)
{
    truth_add("%s{\"function\":\"%s\",\"outstanding_bytes\":%lu,\"outstanding_count\":%lu}",
              truth_size ? "," : "", function, bytes, count);
}

/* What must be mapped by the call site `function` and not be unmapped: seen through the lens `mmap`. */
static inline void expect_mapped(const char *function, unsigned long bytes, unsigned long count)
{
    truth_add("%s{\"lens\":\"mmap\",\"function\":\"%s\",\"outstanding_bytes\":%lu,\"outstanding_count\":%lu}",
              truth_size ? "," : "", function, bytes, count);
}

/* Prints the truth and waits for the end. `is_strict`: nothing else has outstanding bytes. */
static inline void target_truth(int is_strict)
{
    char line[16];
    target_say("truth {\"is_strict\":");
    target_say(is_strict ? "true" : "false");
    target_say(",\"sites\":[");
    target_write(truth_text, truth_size);
    target_say("]}\n");
    while (target_line(line, sizeof line)) {
    }
}

#endif
