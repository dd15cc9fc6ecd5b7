/* SPDX-License-Identifier: Apache-2.0 */
/* host.h - host memory: large buffers on huge pages, and copies at the speed of memory.
 *
 * Any thread. Copies and swaps never fail and allocate nothing, so an undo may rely on them.
 */
#ifndef WEIR_DEVICE_HOST_H
#define WEIR_DEVICE_HOST_H

#include <stddef.h>

#include "weir/convert.h"

/* Zeroed memory, aligned to a page, and to a huge page (with the kernel advised to use them) from
 * 2 MiB on. Pages are taken when first touched. n_bytes 0 gives a valid pointer. Counted by
 * weir_alloc_count(). ERR_NO_MEMORY. Gives *out: free with weir_host_free() and the same n_bytes.
 */
weir_status weir_host_allocate(size_t n_bytes, void **out);
void weir_host_free(void *data, size_t n_bytes); /* accepts NULL */

/* Copies n_bytes between ranges that do not overlap, on all threads of the pool (NULL: this one).
 * Large copies bypass the cache on their way out: for bytes that are not read again soon. Blocks
 * until done. */
void weir_host_copy(weir_pool *pool, void *dst, const void *src, size_t n_bytes);

/* Exchanges the contents of two ranges that do not overlap, through a few KiB of stack per thread.
 * Swapping again brings the old contents back: what an undo log of an install needs. Blocks until
 * done. */
void weir_host_swap(weir_pool *pool, void *a, void *b, size_t n_bytes);

#endif
