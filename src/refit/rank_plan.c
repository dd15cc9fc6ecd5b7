/* SPDX-License-Identifier: Apache-2.0 */
/* rank_plan.c - whole model -> plan of the fleet -> one rank's share. */
#include "refit/rank_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "plan/fleet.h"
#include "refit/holders.h"
#include "refit/model_sources.h"
#include "refit/window.h"

static void close_parts(weir_rank_plan *plan)
{
    weir_checkpoint_share_close(&plan->named);
    weir_share_free(plan->share);
    weir_fleet_close(plan->fleet);
    weir_fleet_tensors_free(plan->tensors);
    weir_mapping_close(plan->mapping);
    weir_family_sources_free(plan->described);
    *plan = (weir_rank_plan){ 0 };
}

void weir_rank_plan_close(weir_rank_plan *plan)
{
    if (plan == NULL)
        return;
    close_parts(plan);
    weir_free(plan);
}

/* ---- the model -------------------------------------------------------------------------------*/

/* Tells the other ranks of these shards, and hears of theirs. */
static weir_status ask_ranks(weir_trainer *trainer, const weir_tensor_shard *shards,
                             size_t n_shards, weir_holders **out)
{
    char *text;
    size_t n_bytes;
    weir_status status = weir_holders_describe(shards, n_shards, &text, &n_bytes);
    if (status != WEIR_OK)
        return status;
    status = weir_registries_exchange(trainer->registries, text, n_bytes);
    weir_free(text);
    if (status == WEIR_OK)
        status = weir_holders_open(trainer->registries, trainer->n_ranks, out);
    weir_registries_forget(trainer->registries);
    return status;
}

static weir_status open_mapping(const weir_trainer *trainer, weir_rank_plan *plan)
{
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = trainer->settings.family;
    options.layout = trainer->settings.layout;
    options.conversion = trainer->settings.conversion;
    options.config = trainer->settings.config;
    weir_status status =
        weir_mapping_open(&options, plan->described, plan->n_described, &plan->mapping);
    if (status != WEIR_OK)
        return status;
    return weir_fleet_tensors_of(plan->mapping, &plan->tensors, &plan->n_tensors);
}

/* ---- the naming ------------------------------------------------------------------------------*/

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Whether this rank has registered something of every source that the mesh gives it. */
static weir_status has_all_sources(const weir_trainer *trainer, const weir_rank_plan *plan,
                                   const weir_tensor_shard *shards, size_t n_shards, bool *out)
{
    weir_mesh_box *boxes = NULL;
    size_t n_boxes = 0;
    const char **names = weir_alloc(n_shards * sizeof(*names));
    if (names == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_shards; i++)
        names[i] = shards[i].local.name;
    qsort(names, n_shards, sizeof(*names), compare_texts);
    weir_status status =
        weir_trainer_mesh_boxes(&trainer->mesh, plan->mapping, trainer->rank, &boxes, &n_boxes);
    *out = status == WEIR_OK;
    for (size_t i = 0; i < n_boxes && *out; i++)
        *out = bsearch(&boxes[i].source->name, names, n_shards, sizeof(*names), compare_texts);
    weir_mesh_boxes_free(boxes);
    weir_free(names);
    return status;
}

static weir_status describe_as(weir_trainer *trainer, const weir_tensor_shard *shards,
                               size_t n_shards, weir_naming *naming, weir_rank_plan *plan,
                               bool *out_all)
{
    close_parts(plan);
    weir_status status = weir_model_sources(&trainer->settings, shards, n_shards, naming,
                                            &plan->described, &plan->n_described);
    if (status == WEIR_OK)
        status = open_mapping(trainer, plan);
    return status == WEIR_OK ? has_all_sources(trainer, plan, shards, n_shards, out_all) : status;
}

/* The names of a rank that holds no experts fit any naming, yet by a wrong one experts may be cut
 * so that it should hold some: it is the naming by which nothing is missing. Where something is
 * missing by all, the first, and what is missing is said later. */
static weir_status describe_model(weir_trainer *trainer, const weir_tensor_shard *shards,
                                  size_t n_shards, weir_rank_plan *plan)
{
    weir_naming naming = WEIR_NAMING_HF;
    bool all = false;
    weir_status status = describe_as(trainer, shards, n_shards, &naming, plan, &all);
    weir_naming first = naming;
    while (status == WEIR_OK && !all && naming < WEIR_NAMING_STACKED) {
        naming++;
        status = describe_as(trainer, shards, n_shards, &naming, plan, &all);
    }
    bool none_fits = status == WEIR_ERR_LAYOUT || (status == WEIR_OK && !all);
    if (!none_fits || naming == first)
        return status;
    return describe_as(trainer, shards, n_shards, &first, plan, &all);
}

/* ---- the plan --------------------------------------------------------------------------------*/

/* "fsdp=2,ep=2": what is not as of one rank. */
static void name_mesh(const weir_trainer_mesh *mesh, char *text, size_t text_bytes)
{
    const struct {
        const char *name;
        uint32_t value, usual;
    } keys[] = { { "fsdp", mesh->fsdp, 1 },
                 { "tp", mesh->tp, 1 },
                 { "ep", mesh->ep, 1 },
                 { "pp", mesh->pp, 1 },
                 { "hsdp", mesh->hsdp, 1 },
                 { "sender", mesh->sender, 0 },
                 { "dense_whole", mesh->dense_whole != 0, 0 },
                 { "owners", weir_owners_are_contiguous(mesh) ? 0 : mesh->n_expert_owners, 0 } };
    size_t used = (size_t)snprintf(text, text_bytes, "%s", "");
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (keys[i].value > keys[i].usual)
            used += (size_t)snprintf(text + used, text_bytes - used, "%s%s=%u", used ? "," : "",
                                     keys[i].name, keys[i].value);
    }
    if (used == 0)
        snprintf(text, text_bytes, "one rank");
}

/* What all ranks must have come to, and in words what they may have been given. */
static void name_plan(weir_trainer *trainer, const weir_fleet *fleet)
{
    char mesh[128] = "boxes", outline[33];
    if (!trainer->is_explicit)
        name_mesh(&trainer->mesh, mesh, sizeof(mesh));
    weir_fleet_outline(fleet, outline);
    snprintf(trainer->plan, sizeof(trainer->plan), "%s to engines of %s (plan %s%s)", mesh,
             trainer->mesh_text[0] != '\0' ? trainer->mesh_text : "one worker", outline,
             trainer->keep_masters ? ", masters kept" : "");
}

/* Sources are compared beside the signature, which counts an element's bits and does not say its
 * dtype: rows that other ranks lend are read as the sources say. */
static bool is_kept(const weir_rank_plan *kept, const weir_rank_plan *wanted)
{
    bool same = kept != NULL && strcmp(kept->signature, wanted->signature) == 0 &&
                kept->n_described == wanted->n_described;
    for (size_t i = 0; same && i < kept->n_described; i++)
        same = kept->described[i].dtype == wanted->described[i].dtype &&
               strcmp(kept->described[i].name, wanted->described[i].name) == 0;
    return same;
}

static weir_status open_share(weir_trainer *trainer, const weir_fleet_args *args,
                              weir_rank_plan *plan)
{
    trainer->worker.counters.plans++;
    weir_status status = weir_fleet_open(args, &plan->fleet);
    if (status != WEIR_OK)
        return status;
    if (trainer->rank < weir_fleet_ranks(plan->fleet))
        status = weir_fleet_share_in_pieces(plan->fleet, trainer->rank,
                                            weir_window_most_piece(trainer), &plan->share);
    else /* behind all that hold something */
        plan->share = weir_alloc_zeroed(1, sizeof(*plan->share));
    if (status != WEIR_OK || plan->share == NULL)
        return status != WEIR_OK ? status : WEIR_ERR_NO_MEMORY;
    return trainer->wire == WEIR_WIRE_CHECKPOINT
               ? weir_checkpoint_share_open(&trainer->settings, plan->tensors, plan->n_tensors,
                                            plan->share, &plan->named)
               : WEIR_OK;
}

/* The rest of a plan whose tensors are there, and takes it; or keeps the old one. */
static weir_status open_fleet(weir_trainer *trainer, weir_rank_plan *plan, const weir_held *held,
                              size_t n_held)
{
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    args.tensors = plan->tensors;
    args.n_tensors = plan->n_tensors;
    args.replica = &trainer->replica_mesh;
    args.trainer = trainer->is_explicit ? NULL : &trainer->mesh;
    args.held = held;
    args.n_held = n_held;
    weir_status status = weir_fleet_sign(&args, plan->signature);
    if (status != WEIR_OK || is_kept(trainer->rank_plan, plan))
        return status;
    weir_rank_plan *taken = weir_alloc_zeroed(1, sizeof(*taken));
    status = taken != NULL ? open_share(trainer, &args, plan) : WEIR_ERR_NO_MEMORY;
    if (status != WEIR_OK) {
        weir_free(taken);
        return status;
    }
    name_plan(trainer, plan->fleet);
    *taken = *plan;
    *plan = (weir_rank_plan){ 0 };
    weir_rank_plan_close(trainer->rank_plan);
    trainer->rank_plan = taken;
    return WEIR_OK;
}

static weir_status open_by_mesh(weir_trainer *trainer, const weir_tensor_shard *shards,
                                size_t n_shards, weir_rank_plan *plan)
{
    weir_status status = describe_model(trainer, shards, n_shards, plan);
    return status == WEIR_OK ? open_fleet(trainer, plan, NULL, 0) : status;
}

static weir_status open_by_holders(weir_trainer *trainer, const weir_holders *holders,
                                   weir_rank_plan *plan)
{
    weir_held *held = NULL;
    size_t n_tensors, n_entries, n_held = 0;
    const weir_tensor_shard *tensors = weir_holders_tensors(holders, &n_tensors);
    weir_naming naming = WEIR_NAMING_HF;
    weir_status status = weir_model_sources(&trainer->settings, tensors, n_tensors, &naming,
                                            &plan->described, &plan->n_described);
    if (status == WEIR_OK)
        status = open_mapping(trainer, plan);
    if (status != WEIR_OK)
        return status;
    weir_described_model model = {
        .entries = weir_mapping_entries(plan->mapping, &n_entries),
        .tensors = plan->tensors,
        .n_tensors = plan->n_tensors,
    };
    status = weir_holders_boxes(holders, &model, &held, &n_held);
    if (status == WEIR_OK)
        status = open_fleet(trainer, plan, held, n_held);
    weir_held_free(held);
    return status;
}

weir_status weir_rank_plan_open(weir_trainer *trainer, const weir_tensor_shard *shards,
                                size_t n_shards)
{
    weir_rank_plan plan = { 0 };
    weir_holders *holders = NULL;
    weir_status status;
    if (trainer->is_explicit) {
        status = ask_ranks(trainer, shards, n_shards, &holders);
        if (status == WEIR_OK)
            status = open_by_holders(trainer, holders, &plan);
        weir_holders_close(holders);
    } else {
        status = open_by_mesh(trainer, shards, n_shards, &plan);
    }
    close_parts(&plan);
    if (status == WEIR_OK && trainer->is_explicit)
        weir_fleet_signature(trainer->rank_plan->fleet, trainer->source.signature);
    else if (status == WEIR_OK)
        weir_fleet_outline(trainer->rank_plan->fleet, trainer->source.signature);
    return status;
}
