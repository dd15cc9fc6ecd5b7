/* SPDX-License-Identifier: Apache-2.0 */
/* sidecar.h - metadata that rides in tensor descriptors of size 0, as ModelExpress v2 does it.
 *
 * "__mx_v2_meta__" holds a JSON object for everybody. "__mx_weir__" holds what Weir's own workers
 * need of each other, in a form that is read without the heap:
 *
 *     VERSION UID N_RANKS LAYOUT NOTE
 *
 * single spaces, "-" for an empty UID or LAYOUT, NOTE to the end and possibly empty. */
#ifndef WEIR_DIRECTORY_SIDECAR_H
#define WEIR_DIRECTORY_SIDECAR_H

#include "directory/client.h"
#include "p2p.pb-c.h"

#define WEIR_SIDECAR_JSON "__mx_v2_meta__"
#define WEIR_SIDECAR_WEIR "__mx_weir__"
#define WEIR_SIDECAR_JSON_BYTES 1024
#define WEIR_SIDECAR_WEIR_BYTES 768

/* What a source says of its version, wherever it says it. */
typedef struct weir_sidecar {
    bool has_step;
    uint64_t step;
    char layout_signature[WEIR_NAME_BYTES]; /* "" when not said, or longer than that */
    char role[WEIR_ID_BYTES];
} weir_sidecar;

/* From the identity's extra parameters, and what is missing there from the JSON descriptor. What
 * does not decode counts as not said: it is some other program's. */
void weir_sidecar_read(const ModelExpress__P2p__SourceIdentity *identity,
                       const ModelExpress__P2p__WorkerMetadata *worker, weir_sidecar *out);

/* ERR_INVALID when a field of the record cannot be written. */
weir_status weir_sidecar_write(const weir_source_record *record,
                               char out_json[WEIR_SIDECAR_JSON_BYTES],
                               char out_weir[WEIR_SIDECAR_WEIR_BYTES]);

/* The text of the descriptor called `name`; NULL when there is none. */
const char *weir_sidecar_find(const ModelExpress__P2p__WorkerMetadata *worker, const char *name);
/* The value of an extra parameter, the last one if it is there twice; NULL when there is none. */
const char *weir_sidecar_extra(const ModelExpress__P2p__SourceIdentity *identity, const char *key);

/* Fills version, version_uid, n_ranks, layout_signature and note. ERR_FORMAT. */
weir_status weir_sidecar_parse(const char *text, weir_source_record *record);

#endif
