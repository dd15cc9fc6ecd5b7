/* SPDX-License-Identifier: Apache-2.0 */
/* service.h - RefitWorkerService and WorkerService as a trainer or replica offers them: its
 * manifests and groups, on request. */
#ifndef WEIR_DIRECTORY_SERVICE_H
#define WEIR_DIRECTORY_SERVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc/rpc.h"
#include "weir/status.h"

/* What is asked for: a manifest, or a group of a version that passes through a window. */
typedef struct weir_manifest_request {
    const char *version_uid, *slot;
    const char *reader; /* "": a manifest; otherwise who asks for the group, and from where: */
    uint32_t worker, group, round;
    const char *gave_up; /* "": the reader goes on */
    bool fresh;          /* it does not stand, all joined, in its broadcast groups of this worker */
} weir_manifest_request;

typedef struct weir_manifest_found {
    const void *bytes;
    size_t n_bytes;
    const char *digest;
} weir_manifest_found;

/* Called in the service's thread; what `find` gives must stay valid until `done` is called (once
 * per successful find). Returns false when there is no such thing. */
typedef struct weir_manifest_source {
    bool (*find)(void *context, const weir_manifest_request *request, weir_manifest_found *out);
    void (*done)(void *context);
    void *context;
} weir_manifest_source;

typedef struct weir_manifest_service weir_manifest_service;

/* Listens on `host` (any free port), with what `security` asks of a server (NULL: as rpc.h has it
 * for none). Gives *out. */
weir_status weir_manifest_service_open(const char *host, const weir_manifest_source *source,
                                       const weir_rpc_security *security,
                                       weir_manifest_service **out);
void weir_manifest_service_close(weir_manifest_service *service); /* accepts NULL */
const char *weir_manifest_service_address(const weir_manifest_service *service);

#endif
