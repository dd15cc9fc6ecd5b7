/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint_share.c - jobs of the engine's parameters become shards of the checkpoint's tensors.
 *
 * The engine's rows bound to the checkpoint say which of its tensors a parameter's rows are of, in
 * order; whatever the trainer calls, stacks or joins, a job's rows are found among them. Where a
 * source holds rows of several tensors its job is cut.
 */
#include "refit/checkpoint_share.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/box.h"

typedef struct namer {
    const weir_fleet_tensor *tensors;
    size_t n_tensors;
    const weir_map_entry *entries;    /* of the engine, bound to the checkpoint */
    const weir_parameter *parameters; /* of the checkpoint */
    uint32_t *first;                  /* of each entry: its first tensor among the parameters */
    const weir_share *from;
    weir_share_shard *shards;
    weir_share_job *jobs;
    const weir_parameter **names;
    size_t n, room; /* of the three */
} namer;

static bool is_one(const weir_map_entry *entry)
{
    return entry->n_sources == 1 && entry->n_experts == 0;
}

/* Layout "checkpoint" has the sources of the entries outside the layers first. */
static void number_entries(namer *n)
{
    uint32_t next = 0;
    for (int of_layers = 0; of_layers < 2; of_layers++) {
        for (size_t i = 0; i < n->n_tensors; i++) {
            const weir_map_entry *entry = &n->entries[i];
            if ((entry->layer >= 0) != (of_layers == 1))
                continue;
            n->first[i] = next;
            next += (uint32_t)(entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1));
        }
    }
}

static bool make_room(namer *n)
{
    if (n->n < n->room)
        return true;
    size_t room = n->room * 2 + 64;
    weir_share_shard *shards = weir_realloc(n->shards, room * sizeof(*shards));
    n->shards = shards != NULL ? shards : n->shards;
    weir_share_job *jobs = weir_realloc(n->jobs, room * sizeof(*jobs));
    n->jobs = jobs != NULL ? jobs : n->jobs;
    const weir_parameter **names = weir_realloc(n->names, room * sizeof(*names));
    n->names = names != NULL ? names : n->names;
    if (shards == NULL || jobs == NULL || names == NULL)
        return false;
    n->room = room;
    return true;
}

/* ---- one job ---------------------------------------------------------------------------------*/

/* A job's rows [row, row + n_rows) of `named`, of expert `expert` where that has all of them. */
static weir_status box_of(const weir_parameter *named, const weir_fleet_copy *copy, bool stacked,
                          uint64_t row, weir_box *out)
{
    uint32_t leading = stacked ? 1 : 0;
    uint64_t n_cols = 1;
    *out = weir_box_whole(&named->shape);
    for (uint32_t d = leading + 1; d < out->rank; d++)
        n_cols *= named->shape.dim[d];
    if (stacked) {
        out->lo[0] = copy->expert;
        out->hi[0] = (uint64_t)copy->expert + 1;
    }
    if (out->rank > leading) {
        out->lo[leading] = row;
        out->hi[leading] = row + copy->n_rows;
    }
    if (n_cols == copy->n_cols)
        return WEIR_OK;
    if (out->rank != leading + 2)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: columns of a tensor of %u axes are cut",
                         named->name, named->shape.rank);
    out->lo[leading + 1] = copy->source_col;
    out->hi[leading + 1] = (uint64_t)copy->source_col + copy->n_cols;
    return WEIR_OK;
}

static weir_status add(namer *n, const weir_share_job *job, const weir_parameter *named,
                       bool stacked, uint64_t row)
{
    weir_share_shard shard = { .tensor = job->copy.tensor, .shape = named->shape };
    weir_status status = box_of(named, &job->copy, stacked, row, &shard.box);
    if (status != WEIR_OK)
        return status;
    if (!make_room(n))
        return WEIR_ERR_NO_MEMORY;
    weir_shape extent = weir_box_shape(&shard.box);
    status = weir_tensor_bytes(named->dtype, &extent, &shard.n_bytes);
    if (status != WEIR_OK)
        return status;
    n->jobs[n->n] = *job;
    n->jobs[n->n].shards[0] = (uint32_t)n->n;
    n->jobs[n->n].offsets[0] = 0;
    n->jobs[n->n].first_words[0] = 0;
    n->names[n->n] = named;
    n->shards[n->n++] = shard;
    return WEIR_OK;
}

/* Cuts the job where its rows are of several tensors; `row` is its first within the parameter. */
static weir_status add_rows(namer *n, const weir_share_job *job, uint64_t row)
{
    const weir_map_entry *entry = &n->entries[job->copy.tensor];
    size_t expert = entry->n_experts > 0 ? job->copy.expert : 0;
    uint64_t begin = 0, end = row + job->copy.n_rows;
    weir_status status = WEIR_OK;
    for (size_t s = 0; s < entry->n_sources && status == WEIR_OK; s++) {
        size_t number = expert * entry->n_sources + s;
        const weir_tensor *source = &entry->sources[number];
        uint64_t behind = begin + (source->shape.rank > 0 ? source->shape.dim[0] : 1);
        uint64_t lo = row > begin ? row : begin, hi = end < behind ? end : behind;
        if (lo < hi) {
            weir_share_job part = *job;
            part.copy.row += (uint32_t)(lo - row);
            part.copy.source_row += (uint32_t)(lo - row);
            part.copy.n_rows = (uint32_t)(hi - lo);
            status = add(n, &part, &n->parameters[n->first[job->copy.tensor] + number], false,
                         lo - begin);
        }
        begin = behind;
    }
    return status;
}

static weir_status name_job(namer *n, const weir_share_job *job)
{
    const weir_fleet_tensor *tensor = &n->tensors[job->copy.tensor];
    const weir_map_entry *entry = &n->entries[job->copy.tensor];
    uint64_t row = job->copy.source_row;
    if (job->copy.source == WEIR_FLEET_MIXED || job->border != WEIR_ANY)
        return weir_fail(WEIR_ERR_INTERNAL, "%s: a cast has no block that lies on two ranks",
                         tensor->name);
    for (uint32_t s = 0; s < job->copy.source; s++)
        row += tensor->source_rows[s];
    if (!is_one(entry))
        return add_rows(n, job, row);
    return add(n, job, &n->parameters[n->first[job->copy.tensor]], tensor->n_experts > 0, row);
}

static weir_status name_all(namer *n)
{
    weir_status status = WEIR_OK;
    for (int of_layers = 0; of_layers < 2; of_layers++) {
        for (size_t i = 0; i < n->from->n_jobs && status == WEIR_OK; i++) {
            const weir_share_job *job = &n->from->jobs[i];
            if ((n->entries[job->copy.tensor].layer >= 0) == (of_layers == 1))
                status = name_job(n, job);
        }
    }
    return status;
}

/* ---- all of them -----------------------------------------------------------------------------*/

static weir_status name_share(namer *n, weir_share *share, weir_checkpoint_share *out)
{
    n->first = weir_alloc_zeroed(n->n_tensors, sizeof(*n->first));
    if (n->first == NULL)
        return WEIR_ERR_NO_MEMORY;
    number_entries(n);
    weir_status status = make_room(n) ? name_all(n) : WEIR_ERR_NO_MEMORY;
    weir_free(n->first);
    if (status != WEIR_OK) {
        weir_free(n->shards);
        weir_free(n->jobs);
        weir_free(n->names);
        return status;
    }
    weir_free(share->shards);
    weir_free(share->jobs);
    share->shards = n->shards;
    share->jobs = n->jobs;
    share->n_shards = share->n_jobs = n->n;
    out->parameters = n->names;
    return WEIR_OK;
}

weir_status weir_checkpoint_share_open(const weir_settings *settings,
                                       const weir_fleet_tensor *tensors, size_t n_tensors,
                                       weir_share *share, weir_checkpoint_share *out)
{
    namer n = { .tensors = tensors, .n_tensors = n_tensors, .from = share };
    weir_mapping *engine = NULL;
    size_t n_described = 0, n_entries = 0, n_parameters;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = settings->family;
    options.config = settings->config;
    options.conversion = "bf16_cast";
    weir_status status = weir_family_sources(settings->family, settings->config, WEIR_NAMING_HF,
                                             &out->described, &n_described);
    if (status == WEIR_OK)
        status = weir_mapping_open(&options, out->described, n_described, &engine);
    options.layout = WEIR_LAYOUT_CHECKPOINT;
    if (status == WEIR_OK)
        status = weir_mapping_open(&options, out->described, n_described, &out->checkpoint);
    if (status == WEIR_OK) {
        n.entries = weir_mapping_entries(engine, &n_entries);
        n.parameters = weir_mapping_parameters(out->checkpoint, &n_parameters);
        out->entries = weir_mapping_entries(out->checkpoint, &n_parameters);
        status =
            n_entries == n_tensors
                ? name_share(&n, share, out)
                : weir_fail(WEIR_ERR_INTERNAL, "%zu entries for %zu tensors", n_entries, n_tensors);
    }
    weir_mapping_close(engine);
    return status;
}

void weir_checkpoint_share_close(weir_checkpoint_share *named)
{
    weir_free(named->parameters);
    weir_mapping_close(named->checkpoint);
    weir_family_sources_free(named->described);
    *named = (weir_checkpoint_share){ 0 };
}
