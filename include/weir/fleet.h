/* SPDX-License-Identifier: Apache-2.0 */
/* fleet.h - what a directory knows of its models, for people and their tools: workers, versions,
 * refits in flight, and what became of the last ones, stop by stop.
 *
 * Threads    a call is complete in itself.
 * Ownership  a wish is borrowed until the call returns; the text is the caller's to free.
 * Errors     ERR_UNSUPPORTED of a directory that is not Weir's, and what its calls end with.
 * Waits      the call ends within the wish's timeout_ms, or 60 s when there is nothing to wait for.
 */
#ifndef WEIR_FLEET_H
#define WEIR_FLEET_H

#include "weir/weir.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weir_fleet_wish {
    size_t size; /* sizeof(weir_fleet_wish) */
    const char *directory;   /* required: "HOST:PORT", or several: the first that answers */
    const char *model;       /* NULL: all */
    uint64_t version;        /* with refits of this version number alone; 0: with the last ones */
    uint64_t after_revision; /* waits until the directory knows something newer; 0: does not */
    unsigned timeout_ms;     /* 0: 60,000 */
    weir_security security;
} weir_fleet_wish;
#define WEIR_FLEET_WISH_INIT WEIR_SIZED(weir_fleet_wish)

/* The JSON document of /api/fleet (docs/wire.md), with its revision. When the time is up, or 20 s are,
 * and nothing is newer: as it is. Gives *out_json, for weir_string_free(). */
WEIR_API weir_status weir_fleet_get(const weir_fleet_wish *wish, char **out_json);

#ifdef __cplusplus
}
#endif
#endif
