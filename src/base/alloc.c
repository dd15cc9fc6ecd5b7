/* SPDX-License-Identifier: Apache-2.0 */
/* alloc.c - malloc with a counter and a planned failure. */
#include "base/alloc.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static atomic_uint_fast64_t n_allocations;
static atomic_uint_fast64_t fail_in;
static _Thread_local bool uncounted;

static int planned_failure(void)
{
    if (uncounted)
        return 0;
    atomic_fetch_add_explicit(&n_allocations, 1, memory_order_relaxed);
    if (atomic_load_explicit(&fail_in, memory_order_relaxed) == 0)
        return 0;
    return atomic_fetch_sub_explicit(&fail_in, 1, memory_order_relaxed) == 1;
}

static void *checked(void *block, size_t n_bytes)
{
    if (block == NULL)
        weir_fail(WEIR_ERR_NO_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
    return block;
}

void *weir_alloc(size_t n_bytes)
{
    return checked(planned_failure() ? NULL : malloc(n_bytes ? n_bytes : 1), n_bytes);
}

void *weir_alloc_zeroed(size_t n_items, size_t item_bytes)
{
    size_t n_bytes;
    if (__builtin_mul_overflow(n_items, item_bytes, &n_bytes)) {
        weir_fail(WEIR_ERR_NO_MEMORY, "out of memory: %zu items of %zu bytes wanted", n_items,
                  item_bytes);
        return NULL;
    }
    return checked(planned_failure() ? NULL : calloc(1, n_bytes ? n_bytes : 1), n_bytes);
}

void *weir_alloc_aligned(size_t alignment, size_t n_bytes)
{
    void *block = NULL;
    if (!planned_failure() && posix_memalign(&block, alignment, n_bytes ? n_bytes : 1) != 0)
        block = NULL;
    return checked(block, n_bytes);
}

void *weir_realloc(void *block, size_t n_bytes)
{
    return checked(planned_failure() ? NULL : realloc(block, n_bytes ? n_bytes : 1), n_bytes);
}

char *weir_strdup(const char *text)
{
    if (text == NULL)
        return NULL;
    size_t n = strlen(text) + 1;
    char *copy = weir_alloc(n);
    return copy ? memcpy(copy, text, n) : NULL;
}

char *weir_format(const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : weir_alloc((size_t)n + 1);
    if (text != NULL)
        vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

void weir_free(void *block)
{
    free(block);
}

bool weir_alloc_note(size_t n_bytes)
{
    if (!planned_failure())
        return true;
    weir_fail(WEIR_ERR_NO_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
    return false;
}

void weir_alloc_uncount_thread(void)
{
    uncounted = true;
}

uint64_t weir_alloc_count(void)
{
    return atomic_load_explicit(&n_allocations, memory_order_relaxed);
}

void weir_alloc_fail_at(uint64_t n)
{
    atomic_store(&fail_in, n);
}
