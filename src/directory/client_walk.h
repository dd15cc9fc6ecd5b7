/* SPDX-License-Identifier: Apache-2.0 */
/* client_walk.h - every source of a model, with all that it says of itself, one after the other. */
#ifndef WEIR_DIRECTORY_CLIENT_WALK_H
#define WEIR_DIRECTORY_CLIENT_WALK_H

#include "base/clock.h"
#include "directory/client.h"
#include "p2p.pb-c.h"

/* One stop of the walk; all of it lives until the visit returns. */
typedef struct weir_walked_source {
    const char *source_id, *worker_id, *model;
    int64_t updated_at_ms; /* as its metadata says, or the list */
    int64_t newest_ms;     /* of all in the list: the server's clock is no earlier */
    size_t index, n_sources;
    const ModelExpress__P2p__SourceIdentity *identity; /* NULL: not kept */
    const ModelExpress__P2p__WorkerMetadata *worker;   /* NULL: */
    const char *why_not;                               /* why it cannot be had */
} weir_walked_source;

typedef weir_status (*weir_source_visit)(void *context, const weir_walked_source *source);

/* Lists at most n_max sources of `model`, newest first, and visits each; *out_cut: there are more.
 * A source that has gone, or that the server refuses to give, is visited with a why_not. Ends with
 * the first error of a visit, with what a call to a server that does not answer ends with, or with
 * ERR_TIMED_OUT by the deadline. `visit` must not use the client. */
weir_status weir_directory_walk_sources(weir_directory_client *client, const char *model,
                                        size_t n_max, weir_deadline deadline,
                                        weir_source_visit visit, void *context, bool *out_cut);

#endif
