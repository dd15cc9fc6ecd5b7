/* SPDX-License-Identifier: Apache-2.0 */
/* plan_model.h - a model and two meshes as `weir plan` gets them, and the plan between them. */
#ifndef WEIR_TOOLS_PLAN_MODEL_H
#define WEIR_TOOLS_PLAN_MODEL_H

#include "cli.h"
#include "weir/mesh.h"

/* What the command line says. NULL: not given. */
typedef struct weir_plan_request {
    const char *config, *family, *preset, *trainer, *replica, *conversion, *layout;
    const char *experts, *owners;
    weir_naming naming;
    uint64_t window_bytes; /* 0: ranks keep slots */
} weir_plan_request;

typedef struct weir_plan_model {
    weir_trainer_mesh trainer;
    weir_replica_mesh replica;
    weir_config *config;
    weir_tensor *sources;
    size_t n_sources;
    weir_mapping *mapping;
    weir_fleet_tensor *tensors;
    size_t n_tensors;
    weir_fleet *fleet;
    uint32_t n_ranks, n_workers, n_parts; /* workers of all replicas, and of one */
    uint64_t window_bytes;
    double seconds; /* that planning took */
} weir_plan_model;

#define WEIR_PLAN_SLOTS 2 /* that a trainer rank has unless it is told otherwise; or buffers */

/* Plans. Returns an exit code, after having printed why when it is not 0; weir_plan_model_close()
 * follows in any case. */
int weir_plan_model_open(const char *verb, const weir_plan_request *request,
                         weir_plan_model *model);
void weir_plan_model_close(weir_plan_model *model);

/* A rank's share, cut to pass through the window if there is one. Gives *out. */
weir_status weir_plan_model_share(const weir_plan_model *model, uint32_t rank, weir_share **out);

#endif
