/* SPDX-License-Identifier: Apache-2.0 */
/* source_id.h - mx_source_id: the hash of what a source is. */
#ifndef WEIR_DIRECTORY_SOURCE_ID_H
#define WEIR_DIRECTORY_SOURCE_ID_H

#include "base/arena.h"
#include "p2p.pb-c.h"
#include "weir/status.h"

#define WEIR_SOURCE_MAX_EXTRAS 256
#define WEIR_SOURCE_ID_BYTES 17 /* sixteen hex digits and a NUL */

/* The first sixteen hex digits of SHA-256 over the identity as compact JSON: keys sorted, text in
 * lower case (ASCII), extra parameters as an object, versions and digests only when not empty.
 * ERR_INVALID with more than WEIR_SOURCE_MAX_EXTRAS parameters, ERR_NO_MEMORY when the arena is
 * full. */
weir_status weir_source_id(const ModelExpress__P2p__SourceIdentity *identity, weir_arena *arena,
                           char out[WEIR_SOURCE_ID_BYTES]);

/* The JSON text itself, in the arena; NULL when it is full. */
const char *weir_source_id_text(const ModelExpress__P2p__SourceIdentity *identity,
                                weir_arena *arena);

#endif
