/* SPDX-License-Identifier: Apache-2.0 */
/* sidecar.h - metadata that rides in tensor descriptors of size 0, as ModelExpress v2 does it.
 *
 * "__mx_v2_meta__" holds a JSON object for everybody, the registry of the published tensors in it.
 * Two more hold what Weir's own workers need of each other, in forms that are read without the
 * heap:
 *
 *     __mx_weir__      VERSION UID N_RANKS LAYOUT NOTE
 *     __mx_weir_of__   ROLE RUN
 *
 * single spaces, "-" for an empty UID or LAYOUT, NOTE and RUN to the end and possibly empty. */
#ifndef WEIR_DIRECTORY_SIDECAR_H
#define WEIR_DIRECTORY_SIDECAR_H

#include "directory/client.h"
#include "p2p.pb-c.h"

#define WEIR_SIDECAR_PREFIX "__mx_" /* of names that are no tensors */
#define WEIR_SIDECAR_JSON "__mx_v2_meta__"
#define WEIR_SIDECAR_WEIR "__mx_weir__"
#define WEIR_SIDECAR_WEIR_OF "__mx_weir_of__"
#define WEIR_SIDECAR_HEAD_BYTES 4096 /* of the JSON but the registry, at the most */
#define WEIR_SIDECAR_WEIR_BYTES 768
#define WEIR_SIDECAR_REGISTRY_BYTES ((size_t)4 << 20) /* a longer one is left in the manifest */

/* What a source says of its version, wherever it says it. */
typedef struct weir_sidecar {
    bool has_step;
    uint64_t step;
    char layout_signature[WEIR_NAME_BYTES]; /* "" when not said, or longer than that */
    char role[WEIR_ID_BYTES];
    char run[WEIR_NAME_BYTES];
} weir_sidecar;

/* From the identity's extra parameters, and what is missing there from Weir's descriptors, or the
 * JSON one. What does not decode counts as not said: it is some other program's. */
void weir_sidecar_read(const ModelExpress__P2p__SourceIdentity *identity,
                       const ModelExpress__P2p__WorkerMetadata *worker, weir_sidecar *out);

/* A record's descriptors, as texts. */
typedef struct weir_sidecar_texts {
    const char *json; /* within `head`, or within the record's registry */
    char words[WEIR_SIDECAR_WEIR_BYTES], of[WEIR_ID_BYTES + WEIR_NAME_BYTES];
    char head[WEIR_SIDECAR_HEAD_BYTES];
} weir_sidecar_texts;

/* ERR_INVALID when a field of the record cannot be written. */
weir_status weir_sidecar_write(const weir_source_record *record, weir_sidecar_texts *out);

/* The text of the descriptor called `name`; NULL when there is none. */
const char *weir_sidecar_find(const ModelExpress__P2p__WorkerMetadata *worker, const char *name);
/* The value of an extra parameter, the last one if it is there twice; NULL when there is none. */
const char *weir_sidecar_extra(const ModelExpress__P2p__SourceIdentity *identity, const char *key);

/* Fills version, version_uid, n_ranks, layout_signature and note. ERR_FORMAT. */
weir_status weir_sidecar_parse(const char *text, weir_source_record *record);
/* Fills role and run. ERR_FORMAT. */
weir_status weir_sidecar_parse_of(const char *text, weir_source_record *record);

#endif
