/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_delivery.h - how a version of a run goes from its trainer ranks to its inference
 * workers. docs/broadcast.md has the table.
 */
#ifndef WEIR_TOOLS_BROADCAST_DELIVERY_H
#define WEIR_TOOLS_BROADCAST_DELIVERY_H

#include "publish_job.h"
#include "weir/run_config.h"

typedef struct weir_broadcast_delivery {
    char engine_mesh[48]; /* as the servers call it themselves (weir_inference_options.ep) */
    bool sends;           /* while weir_trainer_wait() waits; else servers read it */
    uint32_t workers_per_replica; /* as weir_trainer_wait() counts replicas */
} weir_broadcast_delivery;

/* Completes what the job's options have left open: transport, delivery, window, engines. Returns an
 * exit code after a message. */
int weir_broadcast_deliver(const weir_run_settings *settings, const char *path,
                           weir_publish_job *job, weir_broadcast_delivery *out);

#endif
