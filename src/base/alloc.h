/* SPDX-License-Identifier: Apache-2.0 */
/* alloc.h - the heap as Weir's own code uses it: counted, and made to fail by tests.
 *
 * All of Weir allocates through these, so that a test can prove that a second refit allocates
 * nothing and reach every out-of-memory path. Any thread.
 */
#ifndef WEIR_BASE_ALLOC_H
#define WEIR_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NULL when out of memory, with the error line recorded. n_bytes 0 gives a valid pointer. */
void *weir_alloc(size_t n_bytes) __attribute__((malloc, warn_unused_result));
void *weir_alloc_zeroed(size_t n_items, size_t item_bytes) __attribute__((warn_unused_result));
void *weir_alloc_aligned(size_t alignment, size_t n_bytes) __attribute__((warn_unused_result));
/* The old block stays valid on failure. */
void *weir_realloc(void *block, size_t n_bytes) __attribute__((warn_unused_result));
char *weir_strdup(const char *text) __attribute__((warn_unused_result)); /* NULL for NULL */
char *weir_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
void weir_free(void *block); /* accepts NULL; for all of the above */

/* Counts memory that is taken by other means (mmap, a library's allocator). False, with the error
 * line recorded, where a test has planned a failure. */
bool weir_alloc_note(size_t n_bytes);

/* From now on the calling thread's allocations are left out of the count: for threads whose work
 * is no part of a refit (heartbeats). */
void weir_alloc_uncount_thread(void);
/* Allocations so far in this process, by the threads that are counted. */
uint64_t weir_alloc_count(void);
/* Tests: the n-th allocation from now on fails (1: the next); 0: none. */
void weir_alloc_fail_at(uint64_t n);

#endif
