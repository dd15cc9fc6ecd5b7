/* SPDX-License-Identifier: Apache-2.0 */
/* slot_check.c - slots of a trainer rank against the tensors that engines have registered.
 *
 * Every error is found and counted; the first 80 are kept. Beyond sizes, which a wrong dtype of the
 * same width would pass, dtypes are compared; and what nobody would fill is an error.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "weir/descriptor.h"
#include "weir/slot_layout.h"

#define HEADING "NIXL descriptor/slot validation failed:"
#define LINE_BYTES 1024
#define MAX_NAMES 20

/* The buffers of one remote name. */
typedef struct group {
    const weir_slot_buffer *const *buffers;
    size_t n;
    uint64_t n_rows; /* the highest row that any of them reaches */
} group;

typedef struct checker {
    const weir_slot_buffer **sorted; /* by remote name, then offset */
    size_t n_buffers;
    const weir_slot_peer *peers;
    size_t n_peers;
    size_t n_errors;
    char *report; /* heading and first errors */
    size_t report_bytes;
    char first[LINE_BYTES];
    weir_status status; /* other than OK: memory ran out */
} checker;

static void error_line(checker *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void error_line(checker *c, const char *format, ...)
{
    char line[LINE_BYTES];
    if (c->n_errors++ >= WEIR_SLOT_REPORT_ERRORS || c->status != WEIR_OK)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    weir_error_one_line(line);
    if (c->n_errors == 1)
        memcpy(c->first, line, sizeof(line));
    size_t n = strlen(line);
    char *grown = weir_realloc(c->report, c->report_bytes + n + 2);
    if (grown == NULL) {
        c->status = WEIR_ERR_NO_MEMORY;
        return;
    }
    c->report = grown;
    c->report[c->report_bytes] = '\n';
    memcpy(c->report + c->report_bytes + 1, line, n + 1);
    c->report_bytes += n + 1;
}

static const char *dtype_text(weir_dtype dtype)
{
    const char *name = weir_dtype_torch_name(dtype);
    return name != NULL ? name : weir_dtype_name(dtype);
}

/* 0 for what has no whole number of bytes. */
static uint64_t bytes_of(const weir_slot_buffer *b)
{
    uint64_t n;
    return weir_tensor_bytes(b->dtype, &b->shape, &n) == WEIR_OK ? n : 0;
}

static uint64_t rows_of(const weir_slot_buffer *b)
{
    return b->shape.rank > 0 ? b->shape.dim[0] : 1;
}

/* ---- one side --------------------------------------------------------------------------------*/

static int compare_keys(const void *a, const void *b)
{
    const weir_slot_buffer *x = *(const weir_slot_buffer *const *)a;
    const weir_slot_buffer *y = *(const weir_slot_buffer *const *)b;
    return strcmp(x->key, y->key);
}

static int compare_places(const void *a, const void *b)
{
    const weir_slot_buffer *x = *(const weir_slot_buffer *const *)a;
    const weir_slot_buffer *y = *(const weir_slot_buffer *const *)b;
    int order = strcmp(x->remote_name, y->remote_name);
    if (order == 0)
        order = (x->offset_rows > y->offset_rows) - (x->offset_rows < y->offset_rows);
    return order != 0 ? order : strcmp(x->key, y->key);
}

static void check_local(checker *c)
{
    qsort(c->sorted, c->n_buffers, sizeof(c->sorted[0]), compare_keys);
    for (size_t i = 0; i < c->n_buffers; i++) {
        const weir_slot_buffer *b = c->sorted[i];
        bool repeats = i > 0 && strcmp(c->sorted[i - 1]->key, b->key) == 0;
        if (repeats && (i == 1 || strcmp(c->sorted[i - 2]->key, b->key) != 0))
            error_line(c, "duplicate local NIXL buffer key '%.255s'", b->key);
        if (b->n_chunks == 0 || bytes_of(b) % b->n_chunks != 0)
            error_line(c, "local buffer '%.255s' bytes=%" PRIu64 " is not divisible by chunks=%u",
                       b->key, bytes_of(b), b->n_chunks);
    }
}

static uint64_t end_of(const weir_slot_buffer *b)
{
    uint64_t end;
    return __builtin_add_overflow(b->offset_rows, b->rows, &end) ? UINT64_MAX : end;
}

static void check_layout(checker *c, const group *g)
{
    uint64_t expected = 0;
    bool reported = false;
    for (size_t i = 0; i < g->n; i++) {
        const weir_slot_buffer *b = g->buffers[i];
        if (b->offset_rows != expected && !reported) {
            error_line(c,
                       "non-contiguous layout for '%.255s': expected row %" PRIu64 ", got %" PRIu64
                       " from '%.255s'",
                       b->remote_name, expected, b->offset_rows, b->key);
            reported = true; /* what follows is off by as much */
        }
        expected = end_of(b);
    }
}

/* ---- both sides ------------------------------------------------------------------------------*/

static const weir_slot_tensor *tensor_of(const weir_slot_peer *peer, const char *name)
{
    for (size_t i = 0; i < peer->n_tensors; i++) {
        if (strcmp(peer->tensors[i].name, name) == 0)
            return &peer->tensors[i];
    }
    return NULL;
}

static void check_entry(checker *c, const weir_slot_peer *peer, const weir_slot_tensor *remote,
                        const weir_slot_buffer *b, uint64_t remote_rows)
{
    char shape[WEIR_SHAPE_TEXT];
    uint64_t rows = rows_of(b), row_bytes = rows > 0 ? bytes_of(b) / rows : 0;
    uint64_t remote_row_bytes = remote_rows > 0 ? remote->n_bytes / remote_rows : 0;
    if (b->n_layout_chunks == 0 || b->rows % b->n_layout_chunks != 0)
        error_line(c, "%.255s: '%.255s' -> '%.255s' rows=%" PRIu64 " is not divisible by chunks=%u",
                   peer->name, b->key, b->remote_name, b->rows, b->n_layout_chunks);
    else if (rows != b->rows / b->n_layout_chunks)
        error_line(c,
                   "%.255s: '%.255s' -> '%.255s' local rows=%" PRIu64 " expected=%" PRIu64
                   " from layout",
                   peer->name, b->key, b->remote_name, rows, b->rows / b->n_layout_chunks);
    if (row_bytes != remote_row_bytes)
        error_line(c,
                   "%.128s: row-byte mismatch for '%.255s' -> '%.255s': local dtype=%s shape=%s "
                   "row_bytes=%" PRIu64 "; remote dtype=%s size=%" PRIu64 " rows=%" PRIu64
                   " row_bytes=%" PRIu64,
                   peer->name, b->key, b->remote_name, dtype_text(b->dtype),
                   weir_shape_text(&b->shape, shape, sizeof(shape)), row_bytes,
                   dtype_text(remote->dtype), remote->n_bytes, remote_rows, remote_row_bytes);
    else if (b->dtype != remote->dtype)
        error_line(c,
                   "%.255s: dtype mismatch for '%.255s' -> '%.255s': local dtype=%s; remote "
                   "dtype=%s",
                   peer->name, b->key, b->remote_name, dtype_text(b->dtype),
                   dtype_text(remote->dtype));
}

static void check_rows(checker *c, const weir_slot_peer *peer, const group *g)
{
    const char *name = g->buffers[0]->remote_name;
    const weir_slot_tensor *remote = tensor_of(peer, name);
    if (remote == NULL) {
        error_line(c, "%.255s: missing inference tensor '%.255s'", peer->name, name);
        return;
    }
    if (g->n_rows == 0 || remote->n_bytes % g->n_rows != 0)
        error_line(c, "%.255s: '%.255s' size=%" PRIu64 " is not divisible by rows=%" PRIu64,
                   peer->name, name, remote->n_bytes, g->n_rows);
    for (size_t i = 0; i < g->n; i++)
        check_entry(c, peer, remote, g->buffers[i], g->n_rows);
}

/* ---- experts ---------------------------------------------------------------------------------*/

/* NULL, with the error told, unless the peer says which experts it has, all of them known. */
static const weir_slot_expert_ids *check_ids(checker *c, const weir_slot_peer *peer,
                                             const weir_slot_buffer *b)
{
    const weir_slot_expert_ids *ids = NULL;
    for (size_t i = 0; i < peer->n_experts && ids == NULL; i++) {
        if (strcmp(peer->experts[i].prefix, b->prefix) == 0)
            ids = &peer->experts[i];
    }
    if (ids == NULL || ids->n_ids == 0) {
        error_line(c, "%.255s: no expert ids under '%.255s': '%.255s' would stay as it is",
                   peer->name, b->prefix, b->key);
        return NULL;
    }
    for (size_t i = 0; i < ids->n_ids; i++) {
        if (ids->ids[i] < b->n_experts)
            continue;
        error_line(c, "%.255s: expert %u under '%.255s', '%.255s' has %u", peer->name, ids->ids[i],
                   b->prefix, b->key, b->n_experts);
        return NULL;
    }
    return ids;
}

static void check_chunks(checker *c, const weir_slot_peer *peer, const weir_slot_buffer *b,
                         const weir_slot_tensor *remote, size_t n_local)
{
    uint64_t n_bytes = bytes_of(b);
    char shape[WEIR_SHAPE_TEXT];
    if (remote->n_bytes % n_local != 0) {
        error_line(c,
                   "%.255s: expert tensor '%.255s' size=%" PRIu64
                   " is not divisible by peer_local_experts=%zu",
                   peer->name, b->key, remote->n_bytes, n_local);
        return;
    }
    if (b->n_chunks == 0 || n_bytes % b->n_chunks != 0) {
        error_line(c,
                   "%.255s: expert local buffer '%.255s' bytes=%" PRIu64
                   " is not divisible by chunks=%u",
                   peer->name, b->key, n_bytes, b->n_chunks);
        return;
    }
    if (n_bytes / b->n_chunks != remote->n_bytes / n_local)
        error_line(c,
                   "%.128s: expert chunk-byte mismatch for '%.255s': local dtype=%s shape=%s "
                   "chunk_bytes=%" PRIu64 "; remote dtype=%s size=%" PRIu64
                   " peer_local_experts=%zu chunk_bytes=%" PRIu64,
                   peer->name, b->key, dtype_text(b->dtype),
                   weir_shape_text(&b->shape, shape, sizeof(shape)), n_bytes / b->n_chunks,
                   dtype_text(remote->dtype), remote->n_bytes, n_local, remote->n_bytes / n_local);
    else if (b->dtype != remote->dtype)
        error_line(c,
                   "%.255s: dtype mismatch for expert tensor '%.255s': local dtype=%s; remote "
                   "dtype=%s",
                   peer->name, b->key, dtype_text(b->dtype), dtype_text(remote->dtype));
}

static void check_expert(checker *c, const weir_slot_peer *peer, const weir_slot_buffer *b)
{
    const weir_slot_tensor *remote = tensor_of(peer, b->remote_name);
    if (remote == NULL) {
        error_line(c, "%.255s: missing expert tensor '%.255s'", peer->name, b->remote_name);
        return;
    }
    if ((uint64_t)b->first_expert + b->n_chunks > b->n_experts)
        error_line(c, "expert local buffer '%.255s': experts %u to %" PRIu64 " of %u", b->key,
                   b->first_expert, (uint64_t)b->first_expert + b->n_chunks, b->n_experts);
    const weir_slot_expert_ids *ids = check_ids(c, peer, b);
    if (ids != NULL)
        check_chunks(c, peer, b, remote, ids->n_ids);
}

/* ---- the whole -------------------------------------------------------------------------------*/

static bool is_filled(const checker *c, const char *name)
{
    size_t low = 0, high = c->n_buffers;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(c->sorted[middle]->remote_name, name);
        if (order == 0)
            return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

static void check_filled(checker *c, const weir_slot_peer *peer)
{
    char names[LINE_BYTES - 320] = "";
    size_t n = 0, used = 0;
    for (size_t i = 0; i < peer->n_tensors; i++) {
        if (is_filled(c, peer->tensors[i].name))
            continue;
        if (n++ < MAX_NAMES && used < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s'%s'",
                                     n > 1 ? ", " : "", peer->tensors[i].name);
    }
    if (n > 0)
        error_line(c, "%.255s: %zu inference tensors not covered by any slot: [%s]", peer->name, n,
                   names);
}

/* The buffers of one name from `at` on; experts are by themselves. */
static group group_at(const checker *c, size_t at)
{
    const weir_slot_buffer *first = c->sorted[at];
    group g = { &c->sorted[at], 1, end_of(first) };
    while (first->kind != WEIR_SLOT_EXPERT && at + g.n < c->n_buffers) {
        const weir_slot_buffer *b = c->sorted[at + g.n];
        if (b->kind == WEIR_SLOT_EXPERT || strcmp(b->remote_name, first->remote_name) != 0)
            break;
        g.n_rows = end_of(b) > g.n_rows ? end_of(b) : g.n_rows;
        g.n++;
    }
    return g;
}

/* Of one peer; NULL: what has nothing to do with peers. */
static void check_groups(checker *c, const weir_slot_peer *peer)
{
    group g;
    for (size_t at = 0; at < c->n_buffers; at += g.n) {
        g = group_at(c, at);
        bool is_expert = c->sorted[at]->kind == WEIR_SLOT_EXPERT;
        if (peer == NULL && !is_expert)
            check_layout(c, &g);
        else if (peer != NULL && is_expert)
            check_expert(c, peer, c->sorted[at]);
        else if (peer != NULL)
            check_rows(c, peer, &g);
    }
}

static void check_all(checker *c)
{
    check_local(c);
    qsort(c->sorted, c->n_buffers, sizeof(c->sorted[0]), compare_places);
    check_groups(c, NULL);
    for (size_t p = 0; p < c->n_peers; p++) {
        check_groups(c, &c->peers[p]);
        check_filled(c, &c->peers[p]);
    }
}

weir_status weir_slot_check(const weir_slot_buffer *buffers, size_t n_buffers,
                            const weir_slot_peer *peers, size_t n_peers, char **out_report)
{
    checker c = { .n_buffers = n_buffers, .peers = peers, .n_peers = n_peers };
    c.sorted = weir_alloc_zeroed(n_buffers, sizeof(c.sorted[0]));
    c.report = weir_strdup(HEADING);
    c.report_bytes = strlen(HEADING);
    c.status = c.sorted != NULL && c.report != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_buffers && c.status == WEIR_OK; i++)
        c.sorted[i] = &buffers[i];
    if (c.status == WEIR_OK)
        check_all(&c);
    weir_free(c.sorted);
    if (c.status == WEIR_OK && c.n_errors > 0)
        c.status = weir_fail(WEIR_ERR_LAYOUT, "%s %s (%zu errors)", HEADING, c.first, c.n_errors);
    if (c.status == WEIR_ERR_LAYOUT && out_report != NULL)
        *out_report = c.report;
    else
        weir_free(c.report);
    return c.status;
}
