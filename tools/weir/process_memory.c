/* SPDX-License-Identifier: Apache-2.0 */
/* process_memory.c - asks the C library and /proc. */
#include "process_memory.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The sum of the lines of a file of /proc that begin so; they are in kilobytes. */
static uint64_t sum_lines(const char *path, const char *const *labels)
{
    char line[128];
    uint64_t n_bytes = 0;
    FILE *file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        for (size_t i = 0; labels[i] != NULL; i++) {
            if (strncmp(line, labels[i], strlen(labels[i])) == 0)
                n_bytes += strtoull(line + strlen(labels[i]), NULL, 10) << 10;
        }
    }
    if (file != NULL)
        fclose(file);
    return n_bytes;
}

weir_process_memory weir_process_memory_now(bool alone)
{
    struct mallinfo2 heap = mallinfo2();
    static const char *const own[] = { "RssAnon:", "RssShmem:", NULL };
    static const char *const by_itself[] = { "Private_Dirty:", NULL };
    weir_process_memory out = { heap.uordblks + heap.hblkhd, 0, sum_lines("/proc/self/status", own),
                                alone ? sum_lines("/proc/self/smaps_rollup", by_itself) : 0 };
    unsigned long long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    if (statm != NULL && fscanf(statm, "%*u %llu", &pages) == 1)
        out.resident_bytes = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    if (statm != NULL)
        fclose(statm);
    return out;
}
