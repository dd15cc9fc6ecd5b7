/* SPDX-License-Identifier: Apache-2.0 */
/* transport_table.c - the ordered array of transports; the first that suits wins.
 *
 * Adding one is a line here and a file beside this one: docs/adding-a-transport.md.
 */
#include "transport/transport_table.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/options.h"
#include "device/cuda_loader.h"
#include "transport/nccl_library.h"

static const char *always(void)
{
    return "";
}

#if !WEIR_HAVE_UCX
static const char *no_ucx(void)
{
    return "left out of this build: UCX (libucx-dev) was missing";
}
#endif

#if !WEIR_HAVE_NCCL
static const char *no_nccl(void)
{
    return "left out of this build: WEIR_NCCL=OFF";
}
#endif

typedef struct row {
    const char *name;
    const weir_transport_ops *ops;
    const char *(*why_not)(void); /* "" where it can run */
} row;

static const row transports[] = {
#if WEIR_HAVE_UCX
    { "ucx", &weir_transport_ucx, always },
#else
    { "ucx", NULL, no_ucx },
#endif
    { "cuda_ipc", &weir_transport_cuda_ipc, weir_cuda_why_not },
#if WEIR_HAVE_NCCL
    { "nccl", &weir_transport_nccl, weir_nccl_why_not },
#else
    { "nccl", NULL, no_nccl },
#endif
    { "file", &weir_transport_file, always },
};
#define N_TRANSPORTS (sizeof(transports) / sizeof(transports[0]))

static weir_transport_info info_of(const row *transport)
{
    const char *why_not = transport->why_not();
    return (weir_transport_info){ transport->name, transport->ops, why_not[0] == '\0', why_not };
}

size_t weir_transports(weir_transport_info *infos, size_t n_infos)
{
    for (size_t i = 0; i < n_infos && i < N_TRANSPORTS; i++)
        infos[i] = info_of(&transports[i]);
    return N_TRANSPORTS;
}

static weir_status unknown(const char *name)
{
    char list[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < N_TRANSPORTS; i++) {
        if (transports[i].ops != NULL && used < sizeof(list))
            used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s", used ? ", " : "",
                                     transports[i].name);
    }
    return weir_fail(WEIR_ERR_NOT_FOUND, "unknown transport '%s'; this build has: %s", name, list);
}

weir_status weir_transport_get(const char *name, const weir_transport_ops **out)
{
    for (size_t i = 0; i < N_TRANSPORTS; i++) {
        const row *transport = &transports[i];
        if (name != NULL && strcmp(name, transport->name) != 0)
            continue;
        weir_transport_info info = info_of(transport);
        if (name == NULL && !(info.available && (info.ops->memory & WEIR_MEMORY_HOST) != 0))
            continue;
        if (!info.available)
            return weir_fail(WEIR_ERR_UNSUPPORTED, "transport %s: %s", info.name, info.why_not);
        *out = info.ops;
        return WEIR_OK;
    }
    return unknown(name != NULL ? name : "");
}

weir_status weir_transfer_wait(weir_transfer *transfer, unsigned timeout_ms)
{
    const weir_transport_ops *ops = transfer->peer->transport->ops;
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    uint64_t seen = 0;
    for (;;) {
        uint64_t done = 0;
        weir_status status = ops->test(transfer, &done);
        if (status != WEIR_IN_PROGRESS)
            return status;
        if (done > seen) {
            seen = done;
            deadline = weir_deadline_in(timeout_ms);
        } else if (weir_deadline_passed(deadline)) {
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "%s: nothing arrived for %.1f s (transport %s, %llu of %llu bytes)",
                             transfer->peer->who, timeout_ms * 1e-3, ops->name,
                             (unsigned long long)done, (unsigned long long)transfer->n_bytes);
        }
    }
}

weir_status weir_transport_struct_read(const void *given, size_t own_bytes, const char *what,
                                       void *out)
{
    if (given != NULL)
        return weir_options_read(given, what, out, own_bytes);
    memset(out, 0, own_bytes);
    return WEIR_OK;
}

weir_status weir_transport_copies_check(const weir_peer *peer, const weir_copy *copies,
                                        size_t n_copies, uint64_t *out_bytes)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n_copies; i++) {
        const weir_copy *copy = &copies[i];
        if (copy->remote == NULL || copy->remote->peer != peer)
            return weir_fail(WEIR_ERR_INVALID, "%s: copy %zu is of another peer's region",
                             peer->who, i);
        if (copy->local == NULL && copy->n_bytes > 0)
            return weir_fail(WEIR_ERR_INVALID, "%s: copy %zu has no destination", peer->who, i);
        if (__builtin_add_overflow(total, copy->n_bytes, &total))
            return weir_fail(WEIR_ERR_INVALID, "%s: copies of more than 2^64 bytes", peer->who);
    }
    *out_bytes = total;
    return WEIR_OK;
}

weir_status weir_transport_bounds_check(const weir_copy *copy, size_t index, uint64_t region_bytes)
{
    if (copy->n_bytes <= region_bytes && copy->offset <= region_bytes - copy->n_bytes)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "%s: copy %zu reads %llu bytes at %llu of a region of %llu",
                     copy->remote->peer->who, index, (unsigned long long)copy->n_bytes,
                     (unsigned long long)copy->offset, (unsigned long long)region_bytes);
}

weir_status weir_transport_parts_check(const char *who, uint32_t root, uint32_t n_ranks,
                                       const weir_group_part *parts, size_t n_parts)
{
    if (root >= n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "%s: a broadcast of rank %u of %u", who, root, n_ranks);
    for (size_t i = 0; i < n_parts; i++) {
        if (parts[i].data == NULL && parts[i].n_bytes > 0)
            return weir_fail(WEIR_ERR_INVALID, "%s: part %zu of a broadcast has no data", who, i);
    }
    return WEIR_OK;
}
