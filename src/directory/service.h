/* SPDX-License-Identifier: Apache-2.0 */
/* service.h - RefitWorkerService as a trainer or replica offers it: its manifests, on request. */
#ifndef WEIR_DIRECTORY_SERVICE_H
#define WEIR_DIRECTORY_SERVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "weir/status.h"

/* Finds the manifest of (version_uid, slot). Called in the service's thread; what it gives must
 * stay valid until `done` is called (once per successful find). Returns false when there is none.
 */
typedef struct weir_manifest_source {
    bool (*find)(void *context, const char *version_uid, const char *slot, const void **out_bytes,
                 size_t *out_n_bytes, const char **out_digest);
    void (*done)(void *context);
    void *context;
} weir_manifest_source;

typedef struct weir_manifest_service weir_manifest_service;

/* Listens on `host` (any free port). Gives *out. */
weir_status weir_manifest_service_open(const char *host, const weir_manifest_source *source,
                                       weir_manifest_service **out);
void weir_manifest_service_close(weir_manifest_service *service); /* accepts NULL */
const char *weir_manifest_service_address(const weir_manifest_service *service);

#endif
