/* SPDX-License-Identifier: Apache-2.0 */
/* device.h - memory by kind: one table of operations per kind, every cell filled.
 *
 * A cell that a kind does not have points to a named stand-in that returns ERR_UNSUPPORTED, so that
 * callers never test for NULL. Host memory has a file of its own (host.h) that callers who know
 * their kind use directly.
 */
#ifndef WEIR_DEVICE_DEVICE_H
#define WEIR_DEVICE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/convert.h"
#include "weir/transport.h"

/* Append only; never reorder. */
typedef struct weir_device_ops {
    size_t size;      /* sizeof(weir_device_ops) when the kind was built */
    const char *name; /* "host", "cuda": in logs and errors */
    uint32_t memory;  /* one of WEIR_MEMORY_… */
    bool available;   /* false: every cell is a stand-in */

    /* Zeroed, page-aligned. Gives *out: free with the same n_bytes. */
    weir_status (*allocate)(size_t n_bytes, void **out);
    void (*free)(void *data, size_t n_bytes); /* accepts NULL */
    /* Copies between ranges that do not overlap; done when it returns. pool NULL: this thread. */
    weir_status (*copy)(weir_pool *pool, void *dst, const void *src, size_t n_bytes);
    /* Exchanges the contents of two ranges that do not overlap. */
    weir_status (*swap)(weir_pool *pool, void *a, void *b, size_t n_bytes);
    /* Keeps the pages where they are, for devices that access them by physical address. */
    weir_status (*pin)(void *data, size_t n_bytes);
    void (*unpin)(void *data, size_t n_bytes);
    /* Makes a handle with which another process of this host maps the same memory. */
    weir_status (*export_memory)(void *data, size_t n_bytes, void *handle, size_t *handle_bytes);
    weir_status (*import_memory)(const void *handle, size_t handle_bytes, void **out,
                                 size_t *out_n_bytes);
} weir_device_ops;

/* The table of a kind. ERR_INVALID for a number that is no single kind. A kind that this build
 * lacks is given too: its cells say so when they are called. */
weir_status weir_device_get(uint32_t memory, const weir_device_ops **out);

#endif
