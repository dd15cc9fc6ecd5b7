/* SPDX-License-Identifier: Apache-2.0 */
/* loader_plan.c - which tensors of a checkpoint make which bytes of a worker, in which order.
 *
 * An engine of one worker converts the mapping's entries. Part of an engine is what a trainer of
 * one rank that has everything would make for this worker's place: the same share of the same plan,
 * so the same bytes as of any trainer that sends what kernels read.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "family/mapping.h"
#include "refit/loader.h"

#define TENSOR_ALIGNMENT 256u

typedef struct named {
    const char *name;
    uint32_t number;
} named;

/* One conversion, before it has its place in the order. */
typedef struct raw_job {
    uint32_t sender;
    int layer;
    uint32_t entry;
    const weir_share_job *job; /* NULL: the whole entry */
    size_t number;
} raw_job;

typedef struct planner {
    weir_loader *loader;
    const weir_loader_options *options;
    const weir_map_entry *entries;
    size_t n_entries;
    const weir_parameter *made; /* of the whole engine */
    weir_fleet_tensor *tensors; /* of a part: how entries are cut, and this worker's share */
    weir_fleet *fleet;
    weir_share *share;
    named *wanted, *live; /* by name */
    raw_job *jobs;
    size_t n_jobs;
    uint32_t *groups;       /* of each entry */
    uint64_t *filled_bytes; /* of each of the worker's parameters */
    uint64_t used_bytes;    /* of the group at hand */
} planner;

/* ---- names -----------------------------------------------------------------------------------*/

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const named *)a)->name, ((const named *)b)->name);
}

static named *sort_names(weir_arena *arena, const weir_parameter *parameters, size_t n)
{
    named *names = weir_arena_zeroed(arena, n + 1, sizeof(*names));
    for (size_t i = 0; names != NULL && i < n; i++)
        names[i] = (named){ parameters[i].name, (uint32_t)i };
    if (names != NULL)
        qsort(names, n, sizeof(*names), compare_names);
    return names;
}

static uint32_t find_name(const named *names, size_t n, const char *name)
{
    named wanted = { .name = name };
    const named *found = bsearch(&wanted, names, n, sizeof(*names), compare_names);
    return found != NULL ? found->number : WEIR_ANY;
}

/* ---- what there is to do ---------------------------------------------------------------------*/

static weir_status open_mappings(weir_loader *loader, const weir_settings *settings)
{
    size_t n_described;
    const char *family = settings->family;
    weir_status status = WEIR_OK;
    if (settings->config == NULL)
        return weir_fail(WEIR_ERR_INVALID, "a replica that is sent a checkpoint needs the engine's "
                                           "config.json to know what to make of it");
    if (family == NULL)
        status = weir_family_of_config(settings->config, &family);
    if (status == WEIR_OK)
        status = weir_family_sources(family, settings->config, WEIR_NAMING_HF, &loader->described,
                                     &n_described);
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = family;
    options.config = settings->config;
    options.layout = WEIR_LAYOUT_CHECKPOINT;
    if (status == WEIR_OK)
        status = weir_mapping_open(&options, loader->described, n_described, &loader->checkpoint);
    options.layout = settings->layout;
    options.conversion = settings->conversion;
    if (status == WEIR_OK)
        status = weir_mapping_open(&options, loader->described, n_described, &loader->engine);
    return status;
}

static weir_status open_share(planner *p)
{
    static const weir_trainer_mesh one_rank = { .pp = 1 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_status status = weir_fleet_tensors_of(p->loader->engine, &p->tensors, &args.n_tensors);
    if (status != WEIR_OK)
        return status;
    args.tensors = p->tensors;
    args.trainer = &one_rank;
    args.replica = p->options->mesh;
    status = weir_fleet_open(&args, &p->fleet);
    return status == WEIR_OK ? weir_fleet_share(p->fleet, 0, &p->share) : status;
}

static bool is_mine(const planner *p, const weir_share_shard *shard)
{
    weir_mesh_place place = weir_replica_mesh_place(p->options->mesh, p->options->worker);
    return weir_mesh_place_matches(&shard->place, &place);
}

/* Those outside the layers first, as they are sent. */
static int compare_jobs(const void *a, const void *b)
{
    const raw_job *x = a, *y = b;
    if (x->sender != y->sender)
        return x->sender < y->sender ? -1 : 1;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    return (x->number > y->number) - (x->number < y->number);
}

/* Who sends what an entry is made of. */
static weir_status find_sender(const planner *p, const weir_map_entry *entry, uint32_t *out)
{
    size_t n = entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1);
    *out = 0;
    for (size_t s = 0; s < n && p->options->senders != NULL; s++) {
        uint32_t number = find_name(p->wanted, p->loader->n_wanted, entry->sources[s].name);
        uint32_t sender = number != WEIR_ANY ? p->options->senders[number] : 0;
        if (s > 0 && sender != *out)
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "%s: %s comes from another rank than %s, and ranks push one after the "
                             "other",
                             entry->name, entry->sources[s].name, entry->sources[0].name);
        *out = sender;
    }
    return WEIR_OK;
}

static weir_status list_jobs(planner *p)
{
    size_t n = p->share != NULL ? p->share->n_jobs : p->n_entries;
    p->jobs = weir_alloc_zeroed(n, sizeof(*p->jobs));
    if (p->jobs == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        const weir_share_job *job = p->share != NULL ? &p->share->jobs[i] : NULL;
        uint32_t entry = job != NULL ? job->copy.tensor : (uint32_t)i;
        if (job != NULL && job->border != WEIR_ANY)
            return weir_fail(WEIR_ERR_INTERNAL, "%s: one rank shares a border with others",
                             p->entries[entry].name);
        if (job != NULL && !is_mine(p, &p->share->shards[job->shards[0]]))
            continue;
        uint32_t sender;
        weir_status status = find_sender(p, &p->entries[entry], &sender);
        if (status != WEIR_OK)
            return status;
        p->jobs[p->n_jobs++] = (raw_job){ sender, p->entries[entry].layer, entry, job, i };
    }
    qsort(p->jobs, p->n_jobs, sizeof(*p->jobs), compare_jobs);
    return WEIR_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------*/

/* The tensor lands with the group at hand. */
static weir_status take_tensor(planner *p, const weir_map_entry *entry, const char *name,
                               uint32_t *out)
{
    weir_loader *loader = p->loader;
    uint32_t number = find_name(p->wanted, loader->n_wanted, name);
    if (number == WEIR_ANY)
        return weir_fail(WEIR_ERR_INTERNAL, "%s: the checkpoint has no %s", entry->name, name);
    weir_loader_tensor *tensor = &loader->tensors[number];
    const weir_parameter *wanted = &loader->wanted[number];
    if (tensor->group == WEIR_ANY) {
        tensor->group = loader->n_groups - 1;
        tensor->at = p->used_bytes;
        p->used_bytes +=
            (tensor->n_bytes + TENSOR_ALIGNMENT - 1) / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT;
        if (p->used_bytes > loader->buffer_bytes)
            loader->buffer_bytes = p->used_bytes;
    }
    if (tensor->group != loader->n_groups - 1)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s makes parameters of two layers", entry->name,
                         name);
    if (!(entry->conversion->sources & WEIR_DTYPE_BIT(wanted->dtype)))
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s is sent as %s, which %s does not take",
                         entry->name, name, weir_dtype_name(wanted->dtype),
                         entry->conversion->name);
    *out = number;
    return WEIR_OK;
}

/* Adds a view of a part of source `from` of the entry. */
static weir_status add_view(planner *p, const weir_map_entry *entry, const weir_tensor *from,
                            const weir_shape *shape, weir_loader_view place)
{
    weir_loader *loader = p->loader;
    weir_status status = take_tensor(p, entry, from->name, &place.tensor);
    if (status != WEIR_OK)
        return status;
    const weir_parameter *wanted = &loader->wanted[place.tensor];
    loader->views[loader->n_views] = (weir_tensor){ wanted->name, wanted->dtype, *shape, NULL };
    loader->places[loader->n_views++] = place;
    return WEIR_OK;
}

/* ---- outputs ---------------------------------------------------------------------------------*/

/* The worker's parameter of that name, which must be as the engine's mapping has it. */
static weir_status find_live(const planner *p, const weir_parameter *made, const weir_shape *shape,
                             uint32_t *out)
{
    char want[WEIR_SHAPE_TEXT], got[WEIR_SHAPE_TEXT];
    uint32_t number = find_name(p->live, p->options->n_parameters, made->name);
    if (number == WEIR_ANY)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s is made of the checkpoint, the engine does not have "
                         "it",
                         made->name);
    const weir_parameter *live = &p->options->parameters[number];
    if (live->dtype != made->dtype || !weir_shape_equal(&live->shape, shape))
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: the engine has %s %s, of the checkpoint is made %s %s", made->name,
                         weir_dtype_name(live->dtype),
                         weir_shape_text(&live->shape, got, sizeof(got)),
                         weir_dtype_name(made->dtype), weir_shape_text(shape, want, sizeof(want)));
    if (strcmp(live->compile_target, made->compile_target) != 0 ||
        strcmp(live->compile_metadata, made->compile_metadata) != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s: the engine has it for %s %s, of the checkpoint it is made for %s %s",
                         made->name, live->compile_target, live->compile_metadata,
                         made->compile_target, made->compile_metadata);
    *out = number;
    return WEIR_OK;
}

static void add_output(planner *p, weir_loader_output output)
{
    weir_loader *loader = p->loader;
    loader->outputs[loader->n_outputs++] = output;
    p->filled_bytes[output.parameter] += output.n_bytes;
}

/* Where a box of a parameter begins, whose bytes must follow each other. */
static weir_status locate_box(const weir_parameter *made, const weir_share_shard *shard,
                              uint64_t *out_offset)
{
    const weir_box *box = &shard->box;
    uint64_t offset = 0;
    bool partial = false; /* an axis behind this one is */
    for (uint32_t d = 0; d < box->rank; d++)
        offset = offset * shard->shape.dim[d] + box->lo[d];
    for (uint32_t d = box->rank; d-- > 0;) {
        if (partial && box->hi[d] - box->lo[d] != 1)
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "%s: a worker's part is made in several columns, which a checkpoint "
                             "loader does not",
                             made->name);
        partial |= box->lo[d] != 0 || box->hi[d] != shard->shape.dim[d];
    }
    *out_offset = offset * weir_dtype_bits(made->dtype) / 8;
    return WEIR_OK;
}

static weir_status aim_share(planner *p, const raw_job *raw, weir_loader_target *target)
{
    const weir_map_entry *entry = &p->entries[raw->entry];
    weir_status status = WEIR_OK;
    for (size_t o = 0; o < entry->conversion->n_outputs && status == WEIR_OK; o++) {
        const weir_share_shard *shard = &p->share->shards[raw->job->shards[o]];
        const weir_parameter *made = &p->made[entry->first_parameter + o];
        uint64_t offset = 0;
        status = find_live(p, made, &shard->shape, &target->parameters[o]);
        if (status == WEIR_OK)
            status = locate_box(made, shard, &offset);
        target->offsets[o] = offset + raw->job->offsets[o];
    }
    return status;
}

/* The shards of this worker's place: what is written, and what nobody fills. */
static weir_status list_share_outputs(planner *p)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < p->share->n_shards && status == WEIR_OK; i++) {
        const weir_share_shard *shard = &p->share->shards[i];
        const weir_parameter *made =
            &p->made[p->entries[shard->tensor].first_parameter + shard->output];
        weir_loader_output output = { .group = p->groups[shard->tensor],
                                      .n_bytes = shard->n_bytes };
        if (!is_mine(p, shard))
            continue;
        status = find_live(p, made, &shard->shape, &output.parameter);
        if (status != WEIR_OK)
            return status;
        p->loader->padding_rows[output.parameter] = shard->n_padding_rows;
        if (shard->n_bytes == 0)
            continue;
        status = locate_box(made, shard, &output.offset);
        if (status == WEIR_OK)
            add_output(p, output);
    }
    return status;
}

static weir_status aim_whole(planner *p, const raw_job *raw, weir_loader_target *target)
{
    const weir_map_entry *entry = &p->entries[raw->entry];
    weir_status status = WEIR_OK;
    for (size_t o = 0; o < entry->conversion->n_outputs && status == WEIR_OK; o++) {
        const weir_parameter *made = &p->made[entry->first_parameter + o];
        weir_loader_output output = { .group = p->groups[raw->entry] };
        status = find_live(p, made, &made->shape, &output.parameter);
        if (status == WEIR_OK)
            status = weir_tensor_bytes(made->dtype, &made->shape, &output.n_bytes);
        target->parameters[o] = output.parameter;
        if (status == WEIR_OK)
            add_output(p, output);
    }
    return status;
}

/* ---- jobs ------------------------------------------------------------------------------------*/

static weir_status view_whole(planner *p, const raw_job *raw, weir_convert_args *args)
{
    const weir_map_entry *entry = &p->entries[raw->entry];
    size_t n = entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1);
    weir_status status = WEIR_OK;
    *args = weir_map_entry_args(entry);
    args->sources = p->loader->views + p->loader->n_views;
    for (size_t s = 0; s < n && status == WEIR_OK; s++)
        status = add_view(p, entry, &entry->sources[s], &entry->sources[s].shape,
                          (weir_loader_view){ 0 });
    return status;
}

/* Rows of one source (of an expert), as weir_share_piece has them. */
static weir_status view_piece(planner *p, const weir_map_entry *entry,
                              const weir_share_piece *piece, uint64_t *pitch)
{
    const weir_fleet_tensor *tensor = &p->tensors[piece->tensor];
    bool is_expert = tensor->n_experts != 0, separate = is_expert && !tensor->stacked;
    const weir_tensor *from =
        &entry->sources[(separate ? piece->expert * entry->n_sources : 0) + piece->source];
    uint32_t number = find_name(p->wanted, p->loader->n_wanted, from->name);
    weir_dtype dtype = number != WEIR_ANY ? p->loader->wanted[number].dtype : from->dtype;
    uint64_t element_bytes = weir_dtype_bits(dtype) / 8, row = piece->source_row;
    if (tensor->stacked)
        row += piece->expert * tensor->source_rows[piece->source];
    bool vector = entry->shape.rank <= (is_expert ? 2u : 1u);
    weir_shape shape = vector ? (weir_shape){ 1, { piece->n_rows } }
                              : (weir_shape){ 2, { piece->n_rows, piece->n_cols } };
    weir_loader_view place = { .offset =
                                   (row * tensor->n_cols + piece->source_col) * element_bytes };
    *pitch = vector ? 0 : tensor->n_cols * element_bytes;
    return add_view(p, entry, from, &shape, place);
}

static weir_status view_share(planner *p, const raw_job *raw, weir_convert_args *args)
{
    const weir_map_entry *entry = &p->entries[raw->entry];
    const weir_fleet_copy *copy = &raw->job->copy;
    weir_share_piece itself = { .tensor = copy->tensor,
                                .source = copy->source,
                                .expert = copy->expert,
                                .source_row = copy->source_row,
                                .source_col = copy->source_col,
                                .n_rows = copy->n_rows,
                                .n_cols = copy->n_cols };
    bool mixed = copy->source == WEIR_FLEET_MIXED;
    const weir_share_piece *pieces = mixed ? &p->share->pieces[copy->first_piece] : &itself;
    uint32_t n = mixed ? copy->n_pieces : 1;
    weir_status status = WEIR_OK;
    *args = (weir_convert_args)WEIR_CONVERT_ARGS_INIT;
    args->conversion = entry->conversion;
    args->sources = p->loader->views + p->loader->n_views;
    args->source_pitches = p->loader->pitches + p->loader->n_views;
    args->n_sources = n;
    for (uint32_t k = 0; k < n && status == WEIR_OK; k++) {
        if (pieces[k].n_cols != copy->n_cols)
            return weir_fail(WEIR_ERR_INTERNAL, "%s: one rank has parts that stand side by side",
                             entry->name);
        status = view_piece(p, entry, &pieces[k], &p->loader->pitches[p->loader->n_views]);
    }
    return status;
}

/* A layer is a group, and so is every entry outside the layers. */
static bool begins_group(const planner *p, size_t i)
{
    const raw_job *job = &p->jobs[i], *before = job - 1;
    return i == 0 || job->sender != before->sender || job->layer != before->layer ||
           (job->layer < 0 && job->entry != before->entry);
}

static weir_status make_jobs(planner *p)
{
    weir_loader *loader = p->loader;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < p->n_jobs && status == WEIR_OK; i++) {
        const raw_job *raw = &p->jobs[i];
        weir_convert_args *args = &loader->args[loader->n_jobs];
        weir_loader_target *target = &loader->targets[loader->n_jobs];
        if (begins_group(p, i)) {
            loader->first_jobs[loader->n_groups++] = loader->n_jobs;
            p->used_bytes = 0;
        }
        p->groups[raw->entry] = loader->n_groups - 1;
        status = raw->job != NULL ? view_share(p, raw, args) : view_whole(p, raw, args);
        args->round_masters = true;
        if (status == WEIR_OK)
            status = raw->job != NULL ? aim_share(p, raw, target) : aim_whole(p, raw, target);
        loader->n_jobs++;
    }
    loader->first_jobs[loader->n_groups] = loader->n_jobs;
    return status == WEIR_OK && p->share != NULL ? list_share_outputs(p) : status;
}

/* ---- all of it -------------------------------------------------------------------------------*/

static size_t count_views(const planner *p)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_jobs; i++) {
        const weir_share_job *job = p->jobs[i].job;
        const weir_map_entry *entry = &p->entries[p->jobs[i].entry];
        if (job == NULL)
            n += entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1);
        else
            n += job->copy.source == WEIR_FLEET_MIXED ? job->copy.n_pieces : 1;
    }
    return n;
}

static weir_status reserve(planner *p)
{
    weir_loader *loader = p->loader;
    weir_arena *arena = &loader->arena;
    size_t n_views = count_views(p);
    size_t n_outputs = p->share != NULL ? p->share->n_shards : 0;
    for (size_t i = 0; i < p->n_entries && p->share == NULL; i++)
        n_outputs += p->entries[i].conversion->n_outputs;
    loader->args = weir_arena_zeroed(arena, p->n_jobs, sizeof(*loader->args));
    loader->targets = weir_arena_zeroed(arena, p->n_jobs, sizeof(*loader->targets));
    loader->first_jobs = weir_arena_zeroed(arena, p->n_jobs + 1, sizeof(*loader->first_jobs));
    loader->left = weir_arena_zeroed(arena, p->n_jobs + 1, sizeof(*loader->left));
    loader->views = weir_arena_zeroed(arena, n_views, sizeof(*loader->views));
    loader->places = weir_arena_zeroed(arena, n_views, sizeof(*loader->places));
    loader->pitches = weir_arena_zeroed(arena, n_views, sizeof(*loader->pitches));
    loader->outputs = weir_arena_zeroed(arena, n_outputs, sizeof(*loader->outputs));
    loader->copies = weir_arena_zeroed(arena, n_outputs, sizeof(*loader->copies));
    p->groups = weir_arena_zeroed(arena, p->n_entries, sizeof(*p->groups));
    loader->padding_rows =
        weir_arena_zeroed(arena, p->options->n_parameters, sizeof(*loader->padding_rows));
    p->filled_bytes = weir_arena_zeroed(arena, p->options->n_parameters, sizeof(*p->filled_bytes));
    return loader->args != NULL && loader->targets != NULL && loader->first_jobs != NULL &&
                   loader->left != NULL && loader->views != NULL && loader->places != NULL &&
                   loader->pitches != NULL && loader->outputs != NULL && loader->copies != NULL &&
                   p->groups != NULL && loader->padding_rows != NULL && p->filled_bytes != NULL
               ? WEIR_OK
               : WEIR_ERR_NO_MEMORY;
}

static weir_status measure_tensors(weir_loader *loader)
{
    weir_status status = WEIR_OK;
    loader->wanted = weir_mapping_parameters(loader->checkpoint, &loader->n_wanted);
    loader->tensors = weir_arena_zeroed(&loader->arena, loader->n_wanted, sizeof(*loader->tensors));
    if (loader->tensors == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < loader->n_wanted && status == WEIR_OK; i++) {
        loader->tensors[i].group = WEIR_ANY;
        status = weir_tensor_bytes(loader->wanted[i].dtype, &loader->wanted[i].shape,
                                   &loader->tensors[i].n_bytes);
    }
    return status;
}

/* Every byte of every parameter is made, but for rows that the engine pads. */
static weir_status check_filled(const planner *p)
{
    for (size_t i = 0; i < p->options->n_parameters; i++) {
        const weir_parameter *live = &p->options->parameters[i];
        uint64_t n_bytes, padding_bytes = 0;
        if (live->entry == SIZE_MAX)
            continue;
        weir_status status = weir_tensor_bytes(live->dtype, &live->shape, &n_bytes);
        if (status != WEIR_OK)
            return status;
        if (live->shape.rank > 0 && live->shape.dim[0] > 0)
            padding_bytes = n_bytes / live->shape.dim[0] * p->loader->padding_rows[i];
        if (p->filled_bytes[i] + padding_bytes != n_bytes)
            return weir_fail(WEIR_ERR_LAYOUT,
                             "%s: the checkpoint makes %" PRIu64 " bytes of it, the engine has "
                             "%" PRIu64,
                             live->name, p->filled_bytes[i], n_bytes);
    }
    return WEIR_OK;
}

static weir_status plan(planner *p)
{
    weir_loader *loader = p->loader;
    weir_status status = measure_tensors(loader);
    if (status != WEIR_OK)
        return status;
    p->wanted = sort_names(&loader->arena, loader->wanted, loader->n_wanted);
    p->live = sort_names(&loader->arena, p->options->parameters, p->options->n_parameters);
    if (p->wanted == NULL || p->live == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (p->options->is_part)
        status = open_share(p);
    if (status == WEIR_OK)
        status = list_jobs(p);
    if (status == WEIR_OK)
        status = reserve(p);
    if (status == WEIR_OK)
        status = make_jobs(p);
    return status == WEIR_OK ? check_filled(p) : status;
}

weir_status weir_loader_plan(weir_loader *loader, const weir_loader_options *options)
{
    planner p = { .loader = loader, .options = options };
    size_t n;
    weir_status status = open_mappings(loader, options->settings);
    if (status != WEIR_OK)
        return status;
    p.entries = weir_mapping_entries(loader->engine, &p.n_entries);
    p.made = weir_mapping_parameters(loader->engine, &n);
    status = plan(&p);
    weir_share_free(p.share);
    weir_fleet_close(p.fleet);
    weir_fleet_tensors_free(p.tensors);
    weir_free(p.jobs);
    return status;
}
