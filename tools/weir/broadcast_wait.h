/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_wait.h - until a version's inference workers hold it, or those that a run goes on with.
 */
#ifndef WEIR_TOOLS_BROADCAST_WAIT_H
#define WEIR_TOOLS_BROADCAST_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#include "weir/run_config.h"
#include "weir/weir.h"

typedef struct weir_broadcast_wait {
    const weir_run_settings *settings;
    const char *directory; /* whom to ask who holds it */
    weir_trainer *trainer;
    uint64_t version;
    double begun; /* when its time began (weir_cli_now()), and how long that is */
    unsigned timeout_ms;
    bool sends;                   /* while it waits, to all who are ready; else they read it */
    uint32_t workers_per_replica; /* as the trainer counts replicas */
} weir_broadcast_wait;

/* Whom the policy drop goes on without is noted on stderr. *out_n: workers that hold it. Statuses
 * are weir_trainer_wait()'s, and `why` gets the line. */
weir_status weir_broadcast_await(const weir_broadcast_wait *wait, unsigned *out_n, char *why,
                                 size_t n_why);

#endif
