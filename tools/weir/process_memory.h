/* SPDX-License-Identifier: Apache-2.0 */
/* process_memory.h - what this process takes of the host's memory. */
#ifndef WEIR_TOOLS_PROCESS_MEMORY_H
#define WEIR_TOOLS_PROCESS_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

typedef struct weir_process_memory {
    uint64_t heap_bytes;     /* allocated and not freed, all libraries together */
    uint64_t resident_bytes; /* pages in memory, which only ever settles */
    uint64_t own_bytes;      /* of these, those that are of no file: allocated or shared memory */
    uint64_t alone_bytes; /* written, and mapped by no other process: not what it reads of others */
} weir_process_memory;
/* alone_bytes only where they are asked for, else 0: that walks all pages, and takes long where
 * much is mapped. */
weir_process_memory weir_process_memory_now(bool alone);

#endif
