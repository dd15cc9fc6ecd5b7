/* SPDX-License-Identifier: Apache-2.0 */
/* process_memory.c - asks the C library and /proc. */
#include "process_memory.h"

#include <malloc.h>
#include <stdio.h>
#include <unistd.h>

/* Lines of /proc/self/status are in kilobytes. */
static uint64_t read_own_bytes(void)
{
    char line[128];
    unsigned long long kilobytes, own = 0;
    FILE *status = fopen("/proc/self/status", "re");
    while (status != NULL && fgets(line, sizeof(line), status) != NULL) {
        if (sscanf(line, "RssAnon: %llu", &kilobytes) == 1 ||
            sscanf(line, "RssShmem: %llu", &kilobytes) == 1)
            own += kilobytes << 10;
    }
    if (status != NULL)
        fclose(status);
    return own;
}

weir_process_memory weir_process_memory_now(void)
{
    struct mallinfo2 heap = mallinfo2();
    weir_process_memory out = { heap.uordblks + heap.hblkhd, 0, read_own_bytes() };
    unsigned long long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    if (statm != NULL && fscanf(statm, "%*u %llu", &pages) == 1)
        out.resident_bytes = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    if (statm != NULL)
        fclose(statm);
    return out;
}
