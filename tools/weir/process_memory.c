/* SPDX-License-Identifier: Apache-2.0 */
/* process_memory.c - asks the C library and /proc. */
#include "process_memory.h"

#include <malloc.h>
#include <stdio.h>
#include <unistd.h>

weir_process_memory weir_process_memory_now(void)
{
    struct mallinfo2 heap = mallinfo2();
    weir_process_memory out = { heap.uordblks + heap.hblkhd, 0 };
    unsigned long long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");
    if (statm != NULL && fscanf(statm, "%*u %llu", &pages) == 1)
        out.resident_bytes = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    if (statm != NULL)
        fclose(statm);
    return out;
}
