/* SPDX-License-Identifier: Apache-2.0 */
/* memory_limit.h - how fast this machine's memory can be read and written at a given mix.
 *
 * What a conversion is measured against: the same buffers, the same bytes, all threads, no
 * arithmetic. 64-byte loads and stores around the cache where the processor has them.
 */
#ifndef WEIR_TOOLS_MEMORY_LIMIT_H
#define WEIR_TOOLS_MEMORY_LIMIT_H

#include <stddef.h>

#define WEIR_MEMORY_LIMIT_THREADS 256

/* Turns of n_read lines of 64 bytes read and n_written written, one after the other. */
typedef struct weir_memory_stream {
    const void *source; /* 64-byte aligned, as is out */
    void *out;
    size_t n_read, n_written, n_turns;
    unsigned n_threads; /* at most WEIR_MEMORY_LIMIT_THREADS */
} weir_memory_stream;

/* Seconds for one pass; negative when a thread cannot be started. */
double weir_memory_stream_seconds(const weir_memory_stream *stream);

/* What this machine's memory can copy with all cores, in GB of payload per second: the median of
 * some rounds. 0 when it cannot be measured. */
double weir_memory_copy_gb_per_s(void);

/* n_bytes of zeroed memory in huge pages where there are any; NULL when there is none left. */
void *weir_memory_map(size_t n_bytes);
void weir_memory_unmap(void *memory, size_t n_bytes);

#endif
