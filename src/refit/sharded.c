/* SPDX-License-Identifier: Apache-2.0 */
/* sharded.c - binds a trainer rank of a mesh: whole model -> plan of the fleet -> this rank's share
 * -> conversions of registered rows.
 *
 * Memory of a rank: the rules of the plan (rank_plan.h), this rank's jobs, and scratch for borders
 * whose pieces do not lie one below the other.
 */
#include "refit/sharded.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/find_nonfinite.h"
#include "refit/magnitudes.h"
#include "refit/rank_plan.h"
#include "refit/registries.h"
#include "refit/window.h"

/* A border whose pieces stand side by side is put together in memory before it is converted. */
typedef struct gathering {
    const weir_share_job *job;
    unsigned char *data;
    weir_dtype dtype;
    const weir_tensor *views; /* of its pieces */
    const uint64_t *pitches;
} gathering;

struct weir_sharded {
    weir_trainer *trainer;
    weir_arena *arena;                /* the source's */
    const weir_fleet_tensor *tensors; /* the trainer's plan's, as the next two */
    size_t n_tensors;
    const weir_share *share;
    const weir_checkpoint_share *named; /* NULL: shards are of the engine's parameters */
    weir_local_shards *local;
    weir_border_rows *lent;
    weir_tensor **views; /* of each job */
    uint64_t **pitches;  /* parallel */
    gathering *gatherings;
    size_t n_gatherings;
    weir_magnitudes *magnitudes; /* NULL: no block of scales is shared with other ranks */
};

/* ---- shards ----------------------------------------------------------------------------------*/

static weir_status lay_out_shards(weir_sharded *sharded)
{
    weir_source *source = &sharded->trainer->source;
    const weir_share *share = sharded->share;
    size_t n_entries, n_parameters;
    const weir_map_entry *entries = weir_mapping_entries(source->mapping, &n_entries);
    const weir_parameter *parameters = weir_mapping_parameters(source->mapping, &n_parameters);
    source->shards = weir_arena_zeroed(sharded->arena, share->n_shards, sizeof(*source->shards));
    if (source->shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < share->n_shards; i++) {
        const weir_share_shard *from = &share->shards[i];
        const weir_parameter *parameter =
            sharded->named != NULL
                ? sharded->named->parameters[i]
                : &parameters[entries[from->tensor].first_parameter + from->output];
        weir_shard *shard = &source->shards[source->n_shards++];
        *shard = (weir_shard){ .name = parameter->name,
                               .dtype = parameter->dtype,
                               .global_shape = from->shape,
                               .box = from->box,
                               .place = from->place,
                               .n_padding_rows = from->n_padding_rows,
                               .compile_target = parameter->compile_target,
                               .compile_metadata = parameter->compile_metadata,
                               .n_bytes = from->n_bytes };
        weir_status status = weir_source_lay_out(source, shard);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

/* ---- jobs ------------------------------------------------------------------------------------*/

static const weir_map_entry *entry_of(const weir_sharded *sharded, uint32_t tensor)
{
    size_t n_entries;
    return &weir_mapping_entries(sharded->trainer->source.mapping, &n_entries)[tensor];
}

/* The whole source that a piece is of. */
static const weir_tensor *source_of(const weir_sharded *sharded, const weir_share_piece *piece)
{
    const weir_map_entry *entry = entry_of(sharded, piece->tensor);
    const weir_fleet_tensor *tensor = &sharded->tensors[piece->tensor];
    bool separate = tensor->n_experts != 0 && !tensor->stacked;
    return &entry->sources[(separate ? piece->expert * entry->n_sources : 0) + piece->source];
}

/* What a checkpoint is sent in is none of the engine's conversions. */
static const weir_conversion *conversion_of(const weir_sharded *sharded, const weir_share_job *job)
{
    const weir_checkpoint_share *named = sharded->named;
    return named != NULL ? named->entries[named->parameters[job->shards[0]]->entry].conversion
                         : entry_of(sharded, job->copy.tensor)->conversion;
}

static bool is_vector(const weir_sharded *sharded, uint32_t tensor)
{
    uint32_t leading = sharded->tensors[tensor].n_experts != 0 ? 1 : 0;
    return entry_of(sharded, tensor)->shape.rank <= leading + 1;
}

/* The pieces that a job converts; of a plain one, itself. */
static size_t pieces_of(const weir_sharded *sharded, const weir_share_job *job,
                        weir_share_piece *itself, const weir_share_piece **out)
{
    const weir_fleet_copy *copy = &job->copy;
    if (copy->source == WEIR_FLEET_MIXED) {
        *out = &sharded->share->pieces[copy->first_piece];
        return copy->n_pieces;
    }
    *itself = (weir_share_piece){ .tensor = copy->tensor,
                                  .source = copy->source,
                                  .expert = copy->expert,
                                  .source_row = copy->source_row,
                                  .source_col = copy->source_col,
                                  .n_rows = copy->n_rows,
                                  .n_cols = copy->n_cols,
                                  .row = copy->row,
                                  .col = copy->col,
                                  .loan = WEIR_ANY };
    *out = itself;
    return 1;
}

/* Points a view at a piece's rows, wherever they are. */
static weir_status aim_view(weir_sharded *sharded, const weir_share_piece *piece, weir_tensor *view,
                            uint64_t *pitch)
{
    if (piece->loan != WEIR_ANY) {
        const weir_tensor *source = source_of(sharded, piece);
        view->name = source->name;
        view->dtype = source->dtype;
        view->data =
            (void *)(uintptr_t)weir_border_at(sharded->trainer->border, piece->loan, piece->offset);
        *pitch = 0;
        return WEIR_OK;
    }
    weir_local_rows rows;
    weir_status status = weir_local_shards_find(sharded->local, sharded->tensors, piece, &rows);
    if (status != WEIR_OK)
        return status;
    view->name = rows.shard->local.name;
    view->dtype = rows.shard->local.dtype;
    view->data = rows.data;
    *pitch = view->shape.rank == 2 ? rows.pitch_bytes : 0;
    return WEIR_OK;
}

/* This rank's rows of borders that are shared by magnitude. */
static weir_status aim_magnitudes(weir_sharded *sharded)
{
    const weir_share *share = sharded->share;
    for (size_t b = 0; b < share->n_borders; b++) {
        const weir_share_border *border = &share->borders[b];
        for (size_t k = border->first_piece; k < border->first_piece + border->n_pieces; k++) {
            weir_magnitude_rows rows = {
                .view.shape = { 2, { share->pieces[k].n_rows, share->pieces[k].n_cols } }
            };
            if (share->pieces[k].loan != WEIR_ANY)
                continue;
            weir_status status =
                aim_view(sharded, &share->pieces[k], &rows.view, &rows.pitch_bytes);
            if (status != WEIR_OK)
                return status;
            weir_magnitudes_aim_piece(sharded->magnitudes, k, &rows);
        }
    }
    return WEIR_OK;
}

static weir_status aim_job(weir_sharded *sharded, size_t i)
{
    weir_share_piece itself;
    const weir_share_piece *pieces;
    size_t n = pieces_of(sharded, &sharded->share->jobs[i], &itself, &pieces);
    for (size_t k = 0; k < n; k++) {
        weir_status status =
            aim_view(sharded, &pieces[k], &sharded->views[i][k], &sharded->pitches[i][k]);
        if (status != WEIR_OK)
            return status;
    }
    if (sharded->share->jobs[i].border != WEIR_ANY) {
        weir_magnitude_rows rows = { sharded->views[i][0], sharded->pitches[i][0] };
        weir_magnitudes_aim_job(sharded->magnitudes, i, &rows);
    }
    return WEIR_OK;
}

/* Whether the pieces lie one below the other, so that they convert where they are. */
static bool is_stack(const weir_fleet_copy *copy, const weir_share_piece *pieces, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        if (pieces[k].n_cols != copy->n_cols)
            return false;
    }
    return true;
}

static weir_status add_gathering(weir_sharded *sharded, size_t i, weir_stage_job *job)
{
    const weir_share_job *from = &sharded->share->jobs[i];
    const weir_tensor *views = sharded->views[i];
    weir_tensor *whole = weir_arena_zeroed(sharded->arena, 1, sizeof(*whole));
    if (whole == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (sharded->trainer->memory == WEIR_MEMORY_CUDA)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: rows of one block of scales lie side by side in several tensors, "
                         "which takes tensors in host memory: these are on a GPU",
                         views[0].name);
    for (uint32_t k = 1; k < from->copy.n_pieces; k++) {
        if (views[k].dtype != views[0].dtype)
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "%s is %s and %s is %s: a block of scales lies on both", views[0].name,
                             weir_dtype_name(views[0].dtype), views[k].name,
                             weir_dtype_name(views[k].dtype));
    }
    *whole = (weir_tensor){
        views[0].name, views[0].dtype, { 2, { from->copy.n_rows, from->copy.n_cols } }, NULL
    };
    uint64_t n_bytes;
    weir_status status = weir_tensor_bytes(whole->dtype, &whole->shape, &n_bytes);
    if (status != WEIR_OK)
        return status;
    whole->data = weir_arena_alloc(sharded->arena, n_bytes);
    if (whole->data == NULL)
        return WEIR_ERR_NO_MEMORY;
    sharded->gatherings[sharded->n_gatherings++] =
        (gathering){ from, whole->data, whole->dtype, views, sharded->pitches[i] };
    job->args.sources = whole;
    job->args.n_sources = 1;
    return WEIR_OK;
}

/* Tensors outside the layers each for itself, in the order of the mapping, then layer by layer: of
 * all ranks the same. */
static uint32_t key_of(const weir_sharded *sharded, const weir_share_job *job)
{
    const weir_map_entry *entry = entry_of(sharded, job->copy.tensor);
    return entry->layer < 0 ? job->copy.tensor
                            : (uint32_t)sharded->n_tensors + (uint32_t)entry->layer;
}

static weir_status make_job(weir_sharded *sharded, size_t i)
{
    weir_source *source = &sharded->trainer->source;
    const weir_share_job *from = &sharded->share->jobs[i];
    weir_share_piece itself;
    const weir_share_piece *pieces;
    size_t n = pieces_of(sharded, from, &itself, &pieces);
    weir_tensor *views = weir_arena_zeroed(sharded->arena, n, sizeof(*views));
    uint64_t *pitches = weir_arena_zeroed(sharded->arena, n, sizeof(*pitches));
    if (views == NULL || pitches == NULL)
        return WEIR_ERR_NO_MEMORY;
    sharded->views[i] = views;
    sharded->pitches[i] = pitches;
    weir_stage_job *job = &source->jobs[i];
    bool vector = is_vector(sharded, from->copy.tensor);
    for (size_t k = 0; k < n; k++) {
        views[k].shape = vector ? (weir_shape){ 1, { pieces[k].n_rows } }
                                : (weir_shape){ 2, { pieces[k].n_rows, pieces[k].n_cols } };
        job->borrows |= pieces[k].loan != WEIR_ANY;
    }
    weir_status status = aim_job(sharded, i);
    job->number = (uint32_t)i;
    job->key = key_of(sharded, from);
    job->args = (weir_convert_args)WEIR_CONVERT_ARGS_INIT;
    job->args.conversion = conversion_of(sharded, from);
    job->by_magnitude = from->border != WEIR_ANY;
    job->borrows |= job->by_magnitude;
    memcpy(job->shards, from->shards, sizeof(job->shards));
    memcpy(job->offsets, from->offsets, sizeof(job->offsets));
    memcpy(job->args.first_words, from->first_words, sizeof(from->first_words));
    if (status == WEIR_OK && !is_stack(&from->copy, pieces, n))
        return add_gathering(sharded, i, job);
    job->args.sources = views;
    job->args.source_pitches = pitches;
    job->args.n_sources = n;
    return status;
}

static weir_status make_jobs(weir_sharded *sharded)
{
    weir_source *source = &sharded->trainer->source;
    size_t n = sharded->share->n_jobs;
    source->jobs = weir_arena_zeroed(sharded->arena, n, sizeof(*source->jobs));
    sharded->views = weir_arena_zeroed(sharded->arena, n, sizeof(*sharded->views));
    sharded->pitches = weir_arena_zeroed(sharded->arena, n, sizeof(*sharded->pitches));
    sharded->gatherings = weir_arena_zeroed(sharded->arena, n, sizeof(*sharded->gatherings));
    if (source->jobs == NULL || sharded->views == NULL || sharded->pitches == NULL ||
        sharded->gatherings == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n && status == WEIR_OK; i++, source->n_jobs++)
        status = make_job(sharded, i);
    return status;
}

/* ---- borders ---------------------------------------------------------------------------------*/

static weir_status aim_lent(weir_sharded *sharded)
{
    for (size_t i = 0; i < sharded->share->n_lent; i++) {
        const weir_share_piece *piece = &sharded->share->lent[i];
        weir_local_rows rows;
        if (piece->border != WEIR_ANY) {
            uint32_t n;
            const float *own = weir_magnitudes_own(sharded->magnitudes, piece->border, &n);
            sharded->lent[i] = (weir_border_rows){ (const unsigned char *)own, n * sizeof(*own),
                                                   n * sizeof(*own), 1, WEIR_F32 };
            continue;
        }
        weir_status status = weir_local_shards_find(sharded->local, sharded->tensors, piece, &rows);
        if (status != WEIR_OK)
            return status;
        weir_dtype dtype = rows.shard->local.dtype;
        sharded->lent[i] =
            (weir_border_rows){ .data = rows.data,
                                .row_bytes = (uint64_t)piece->n_cols * weir_dtype_bits(dtype) / 8,
                                .pitch_bytes = rows.pitch_bytes,
                                .n_rows = piece->n_rows,
                                .dtype = dtype };
    }
    return WEIR_OK;
}

/* The dtype of all rows of a loan; NONE where they differ. */
static weir_dtype dtype_of_loan(const weir_sharded *sharded, uint32_t loan)
{
    weir_dtype dtype = WEIR_DTYPE_NONE;
    for (size_t i = 0; i < sharded->share->n_pieces; i++) {
        const weir_share_piece *piece = &sharded->share->pieces[i];
        if (piece->loan != loan)
            continue;
        weir_dtype found = piece->border != WEIR_ANY ? WEIR_F32 : source_of(sharded, piece)->dtype;
        if (dtype != WEIR_DTYPE_NONE && found != dtype)
            return WEIR_DTYPE_NONE;
        dtype = found;
    }
    return dtype;
}

static weir_status open_border(weir_sharded *sharded)
{
    const weir_share *share = sharded->share;
    weir_trainer *trainer = sharded->trainer;
    if (share->n_lends == 0 && share->n_borrows == 0)
        return WEIR_OK;
    weir_dtype *borrowed = weir_arena_zeroed(sharded->arena, share->n_borrows, sizeof(*borrowed));
    sharded->lent = weir_arena_zeroed(sharded->arena, share->n_lent, sizeof(*sharded->lent));
    if (borrowed == NULL || sharded->lent == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < share->n_borrows; i++)
        borrowed[i] = dtype_of_loan(sharded, (uint32_t)i);
    weir_status status = aim_lent(sharded);
    weir_border_options options = { trainer, share, sharded->lent, borrowed };
    return status == WEIR_OK ? weir_border_open(&options, &trainer->border) : status;
}

static weir_status open_magnitudes(weir_sharded *sharded)
{
    const weir_trainer *trainer = sharded->trainer;
    bool on_gpu = trainer->memory == WEIR_MEMORY_CUDA;
    weir_magnitudes_options options = { .share = sharded->share,
                                        .tensors = sharded->tensors,
                                        .pool = trainer->worker.pool,
                                        .work = on_gpu ? trainer->work : NULL,
                                        .timeout_ms = trainer->worker.timeout_ms,
                                        .arena = sharded->arena };
    return weir_magnitudes_open(&options, &sharded->magnitudes);
}

weir_status weir_sharded_lend(weir_sharded *sharded, uint64_t version)
{
    weir_border *border = sharded->trainer->border;
    weir_status status = WEIR_OK;
    if (sharded->magnitudes != NULL)
        status = weir_magnitudes_measure(sharded->magnitudes);
    return status == WEIR_OK && border != NULL ? weir_border_lend(border, version) : status;
}

static const void *loan_at(void *context, uint32_t loan, uint64_t offset)
{
    return weir_border_at(context, loan, offset);
}

static void gather(const weir_sharded *sharded, const gathering *g)
{
    const weir_fleet_copy *copy = &g->job->copy;
    size_t element_bytes = weir_dtype_bits(g->dtype) / 8, row_bytes = copy->n_cols * element_bytes;
    for (uint32_t k = 0; k < copy->n_pieces; k++) {
        const weir_share_piece *piece = &sharded->share->pieces[copy->first_piece + k];
        size_t piece_bytes = piece->n_cols * element_bytes;
        uint64_t pitch = g->pitches[k] != 0 ? g->pitches[k] : piece_bytes;
        const unsigned char *from = g->views[k].data;
        unsigned char *to = g->data + (piece->row - copy->row) * row_bytes +
                            (piece->col - copy->col) * element_bytes;
        for (uint32_t r = 0; r < piece->n_rows; r++)
            memcpy(to + r * row_bytes, from + r * pitch, piece_bytes);
    }
}

weir_status weir_sharded_borrow(weir_sharded *sharded, uint64_t version)
{
    weir_border *border = sharded->trainer->border;
    weir_status status = border != NULL ? weir_border_borrow(border, version) : WEIR_OK;
    for (size_t i = 0; i < sharded->n_gatherings && status == WEIR_OK; i++)
        gather(sharded, &sharded->gatherings[i]);
    if (status == WEIR_OK && sharded->magnitudes != NULL)
        weir_magnitudes_join(sharded->magnitudes, loan_at, border);
    return status;
}

/* Jobs in the order of the share, as many as follow each other there: their magnitudes are kept by
 * its numbers. */
static size_t run_of_jobs(const weir_stage_job *jobs, size_t n, bool *out_any)
{
    size_t run = 0;
    *out_any = false;
    do {
        *out_any |= jobs[run].by_magnitude;
    } while (++run < n && jobs[run].number == jobs[run - 1].number + 1);
    return run;
}

weir_status weir_sharded_convert(weir_sharded *sharded, unsigned char *data, size_t first_job,
                                 size_t n_jobs, weir_digest *digests)
{
    weir_status status = WEIR_OK;
    if (sharded == NULL || sharded->magnitudes == NULL)
        return WEIR_OK;
    const weir_source *source = &sharded->trainer->source;
    for (size_t i = 0, n; i < n_jobs && status == WEIR_OK; i += n) {
        const weir_stage_job *jobs = &source->jobs[first_job + i];
        bool any;
        n = run_of_jobs(jobs, n_jobs - i, &any);
        weir_magnitude_target target = { .data = data,
                                         .shards = source->shards,
                                         .first_job = jobs->number,
                                         .end_job = jobs->number + n,
                                         .jobs = jobs,
                                         .digests = digests,
                                         .round_masters = !sharded->trainer->keep_masters };
        if (any)
            status = weir_magnitudes_convert(sharded->magnitudes, &target);
    }
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------*/

weir_status weir_sharded_bind(weir_trainer *trainer, const weir_tensor_shard *shards,
                              size_t n_shards)
{
    weir_sharded *sharded = weir_alloc_zeroed(1, sizeof(*sharded));
    if (sharded == NULL)
        return WEIR_ERR_NO_MEMORY;
    trainer->source.sharded = sharded;
    sharded->trainer = trainer;
    sharded->arena = &trainer->source.arena;
    weir_status status = weir_rank_plan_open(trainer, shards, n_shards);
    if (status == WEIR_OK) {
        const weir_rank_plan *plan = trainer->rank_plan;
        trainer->source.mapping = plan->mapping;
        sharded->tensors = plan->tensors;
        sharded->n_tensors = plan->n_tensors;
        sharded->share = plan->share;
        sharded->named = trainer->wire == WEIR_WIRE_CHECKPOINT ? &plan->named : NULL;
    }
    if (status == WEIR_OK)
        status = weir_local_shards_open(trainer->source.mapping, sharded->tensors,
                                        sharded->n_tensors, shards, n_shards, &sharded->local);
    if (status == WEIR_OK)
        status = lay_out_shards(sharded);
    if (status == WEIR_OK && sharded->share->n_borders > 0)
        status = open_magnitudes(sharded);
    if (status == WEIR_OK)
        status = open_border(sharded);
    if (status == WEIR_OK)
        status = make_jobs(sharded);
    if (status == WEIR_OK)
        status = aim_magnitudes(sharded);
    if (status != WEIR_OK && trainer->is_explicit)
        weir_registries_withdraw(trainer->registries);
    return status;
}

weir_status weir_sharded_rebind(weir_trainer *trainer, const weir_tensor_shard *shards,
                                size_t n_shards)
{
    weir_sharded *sharded = trainer->source.sharded;
    weir_status status = weir_local_shards_rebind(sharded->local, shards, n_shards);
    if (status == WEIR_OK && sharded->lent != NULL)
        status = aim_lent(sharded);
    for (size_t i = 0; i < trainer->source.n_jobs && status == WEIR_OK; i++)
        status = aim_job(sharded, i);
    return status == WEIR_OK ? aim_magnitudes(sharded) : status;
}

void weir_sharded_name_nonfinite(const weir_sharded *sharded)
{
    weir_error_line cause;
    const weir_local_shards *local = sharded->local;
    weir_error_save(&cause);
    if (weir_find_nonfinite(local->shards, local->n_shards, !sharded->trainer->keep_masters) !=
        WEIR_OK)
        return;
    cause.text[strcspn(cause.text, "[")] = '\0';
    weir_fail(WEIR_ERR_NONFINITE,
              "%s shares a block of scales with other ranks, where it is not finite: their lines "
              "say what is wrong",
              cause.text);
}

void weir_sharded_close(weir_sharded *sharded)
{
    if (sharded == NULL)
        return;
    weir_window_close(sharded->trainer); /* lies in the source's arena */
    weir_border_close(sharded->trainer->border);
    weir_magnitudes_close(sharded->magnitudes);
    weir_local_shards_close(sharded->local);
    weir_free(sharded);
}
