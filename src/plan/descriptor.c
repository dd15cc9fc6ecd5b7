/* SPDX-License-Identifier: Apache-2.0 */
/* descriptor.c - one tensor of one worker: whether its description makes sense, and how to come by
 * one. How descriptions travel is descriptor_json.c's business.
 */
#include "weir/descriptor.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/options.h"

#define MAX_NAME_BYTES 255

/* ---- names -----------------------------------------------------------------------------------*/

const char *weir_placement_name(weir_placement placement)
{
    static const char *const names[] = { "REPLICATE", "SHARD", "PARTIAL", "BOX" };
    return (unsigned)placement < sizeof(names) / sizeof(names[0]) ? names[placement] : "?";
}

/* Of dtypes that torch packs two to a byte the shape would say something else than Weir's. */
static const char *const torch_names[WEIR_DTYPE_END] = {
    [WEIR_BOOL] = "bool",
    [WEIR_U8] = "uint8",
    [WEIR_I8] = "int8",
    [WEIR_U16] = "uint16",
    [WEIR_I16] = "int16",
    [WEIR_U32] = "uint32",
    [WEIR_I32] = "int32",
    [WEIR_U64] = "uint64",
    [WEIR_I64] = "int64",
    [WEIR_F16] = "float16",
    [WEIR_BF16] = "bfloat16",
    [WEIR_F32] = "float32",
    [WEIR_F64] = "float64",
    [WEIR_C64] = "complex64",
    [WEIR_F8_E4M3] = "float8_e4m3fn",
    [WEIR_F8_E5M2] = "float8_e5m2",
    [WEIR_F8_E8M0] = "float8_e8m0fnu",
    [WEIR_F8_E4M3FNUZ] = "float8_e4m3fnuz",
    [WEIR_F8_E5M2FNUZ] = "float8_e5m2fnuz",
};

const char *weir_dtype_torch_name(weir_dtype dtype)
{
    return (unsigned)dtype < WEIR_DTYPE_END ? torch_names[dtype] : NULL;
}

weir_dtype weir_dtype_from_torch_name(const char *name)
{
    if (name != NULL && strncmp(name, "torch.", 6) == 0)
        name += 6;
    for (unsigned d = 0; name != NULL && d < WEIR_DTYPE_END; d++) {
        if (torch_names[d] != NULL && strcmp(torch_names[d], name) == 0)
            return (weir_dtype)d;
    }
    return WEIR_DTYPE_NONE;
}

/* ---- does it make sense ----------------------------------------------------------------------*/

static weir_status check_range(const weir_tensor_descriptor *d, uint32_t axis, uint64_t lo,
                               uint64_t hi)
{
    if (axis >= d->global_shape.rank)
        return weir_fail(WEIR_ERR_INVALID, "%s: axis %u of a tensor of rank %u", d->name, axis,
                         d->global_shape.rank);
    if (lo > hi || hi > d->global_shape.dim[axis])
        return weir_fail(WEIR_ERR_INVALID,
                         "%s: range [%" PRIu64 ", %" PRIu64 ") outside global_shape[%u]=%" PRIu64,
                         d->name, lo, hi, axis, d->global_shape.dim[axis]);
    return WEIR_OK;
}

static weir_status check_placement(const weir_tensor_descriptor *d)
{
    weir_status status = WEIR_OK;
    if (d->has_range && d->placement != WEIR_PLACEMENT_SHARD)
        return weir_fail(WEIR_ERR_INVALID, "%s: a local_shard_range of placement_kind %s", d->name,
                         weir_placement_name(d->placement));
    switch (d->placement) {
    case WEIR_PLACEMENT_REPLICATE:
    case WEIR_PLACEMENT_PARTIAL:
        return WEIR_OK;
    case WEIR_PLACEMENT_SHARD:
        if (!d->has_range && (d->n_expert_ids == 0 || d->expert_axis != d->shard_axis))
            return weir_fail(WEIR_ERR_INVALID, "%s: SHARD without a local_shard_range", d->name);
        return d->has_range ? check_range(d, d->shard_axis, d->range_lo, d->range_hi)
                            : check_range(d, d->shard_axis, 0, 0);
    case WEIR_PLACEMENT_BOX:
        if (d->box.rank != d->global_shape.rank)
            return weir_fail(WEIR_ERR_INVALID, "%s: a box of rank %u of a tensor of rank %u",
                             d->name, d->box.rank, d->global_shape.rank);
        for (uint32_t a = 0; a < d->box.rank && status == WEIR_OK; a++)
            status = check_range(d, a, d->box.lo[a], d->box.hi[a]);
        return status;
    }
    return weir_fail(WEIR_ERR_INVALID, "%s: placement %d is none", d->name, (int)d->placement);
}

/* Where ids and a range speak of one axis, they must say the same. */
static weir_status check_experts(const weir_tensor_descriptor *d)
{
    if (!d->is_expert)
        return d->n_expert_ids == 0
                   ? WEIR_OK
                   : weir_fail(WEIR_ERR_INVALID, "%s: expert ids of what has no experts", d->name);
    if (d->expert_axis >= d->global_shape.rank)
        return weir_fail(WEIR_ERR_INVALID, "%s: expert_axis %u of a tensor of rank %u", d->name,
                         d->expert_axis, d->global_shape.rank);
    uint64_t n_experts = d->global_shape.dim[d->expert_axis];
    for (size_t i = 0; i < d->n_expert_ids; i++) {
        if (d->expert_ids[i] >= n_experts)
            return weir_fail(WEIR_ERR_INVALID,
                             "%s: expert id %u outside global_shape[%u]=%" PRIu64
                             ": a rank that holds some experts says the shape of all",
                             d->name, d->expert_ids[i], d->expert_axis, n_experts);
        if (i > 0 && d->expert_ids[i] <= d->expert_ids[i - 1])
            return weir_fail(WEIR_ERR_INVALID, "%s: expert id %u behind %u: ids ascend", d->name,
                             d->expert_ids[i], d->expert_ids[i - 1]);
    }
    weir_box box = weir_tensor_descriptor_box(d);
    uint64_t lo = box.lo[d->expert_axis], hi = box.hi[d->expert_axis];
    bool by_range = hi - lo < n_experts;
    if (by_range && d->n_expert_ids > 0 &&
        (d->n_expert_ids != hi - lo || d->expert_ids[0] != lo ||
         d->expert_ids[d->n_expert_ids - 1] != hi - 1))
        return weir_fail(WEIR_ERR_INVALID,
                         "%s: %zu expert ids from %u on, but range [%" PRIu64 ", %" PRIu64
                         ") of axis %u",
                         d->name, d->n_expert_ids, d->expert_ids[0], lo, hi, d->expert_axis);
    return WEIR_OK;
}

weir_status weir_tensor_descriptor_check(const weir_tensor_descriptor *d)
{
    uint64_t n_elements;
    size_t n = d->name != NULL ? strlen(d->name) : 0;
    if (n == 0 || n > MAX_NAME_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "'%.40s': a tensor's name has 1 to %d bytes, got %zu",
                         n > 0 ? d->name : "", MAX_NAME_BYTES, n);
    if (d->dtype == NULL || d->dtype[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "%s: no dtype", d->name);
    if (d->global_shape.rank > WEIR_MAX_RANK)
        return weir_fail(WEIR_ERR_INVALID, "%s: rank %u, at most %d is taken", d->name,
                         d->global_shape.rank, WEIR_MAX_RANK);
    weir_status status = weir_shape_elements(&d->global_shape, &n_elements);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", d->name);
        return status;
    }
    status = check_placement(d);
    return status == WEIR_OK ? check_experts(d) : status;
}

weir_box weir_tensor_descriptor_box(const weir_tensor_descriptor *d)
{
    weir_box box = weir_box_whole(&d->global_shape);
    if (d->placement == WEIR_PLACEMENT_BOX)
        return d->box;
    if (d->placement == WEIR_PLACEMENT_SHARD && d->has_range) {
        box.lo[d->shard_axis] = d->range_lo;
        box.hi[d->shard_axis] = d->range_hi;
    }
    return box;
}

bool weir_tensor_descriptor_matches(const weir_tensor_descriptor *d,
                                    const char *const *allowed_targets, size_t n_allowed,
                                    const char *required_metadata)
{
    return weir_compile_target_matches(d->compile_target != NULL ? d->compile_target
                                                                 : WEIR_TARGET_HF_RAW,
                                       d->compile_metadata != NULL ? d->compile_metadata : "{}",
                                       allowed_targets, n_allowed, required_metadata);
}

/* ---- coming by one ---------------------------------------------------------------------------*/

static weir_status describe_range(const weir_describe_args *args, weir_tensor_descriptor *out)
{
    uint64_t lo = args->range_lo, hi = args->range_hi;
    if (args->axis >= args->global_shape.rank || args->local_shape.rank != args->global_shape.rank)
        return weir_fail(WEIR_ERR_INVALID, "tensor '%s': axis %u, local rank %u, global rank %u",
                         args->name, args->axis, args->local_shape.rank, args->global_shape.rank);
    if (hi < lo || hi - lo != args->local_shape.dim[args->axis])
        return weir_fail(WEIR_ERR_INVALID,
                         "tensor '%s': range [%" PRIu64 ", %" PRIu64 ") width %" PRId64
                         " != tensor extent %" PRIu64 " on axis %u",
                         args->name, lo, hi, (int64_t)(hi - lo), args->local_shape.dim[args->axis],
                         args->axis);
    if (hi > args->global_shape.dim[args->axis])
        return weir_fail(WEIR_ERR_INVALID,
                         "tensor '%s': range [%" PRIu64 ", %" PRIu64
                         ") outside global_shape[%u]=%" PRIu64,
                         args->name, lo, hi, args->axis, args->global_shape.dim[args->axis]);
    out->placement = WEIR_PLACEMENT_SHARD;
    out->shard_axis = args->axis;
    out->has_range = true;
    out->range_lo = lo;
    out->range_hi = hi;
    return WEIR_OK;
}

static weir_status describe_box(const weir_describe_args *args, weir_tensor_descriptor *out)
{
    const weir_box *box = &args->box;
    uint32_t n_cut = 0, axis = 0;
    if (box->rank != args->global_shape.rank)
        return weir_fail(WEIR_ERR_INVALID, "tensor '%s': a box of rank %u, global rank %u",
                         args->name, box->rank, args->global_shape.rank);
    for (uint32_t a = 0; a < box->rank; a++) {
        if (box->lo[a] == 0 && box->hi[a] == args->global_shape.dim[a])
            continue;
        n_cut++;
        axis = a;
    }
    if (n_cut == 1) {
        weir_describe_args range = *args;
        range.axis = axis;
        range.range_lo = box->lo[axis];
        range.range_hi = box->hi[axis];
        return describe_range(&range, out);
    }
    weir_shape shape = weir_box_shape(box);
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT];
    if (n_cut > 1 && !weir_shape_equal(&shape, &args->local_shape))
        return weir_fail(WEIR_ERR_INVALID, "tensor '%s': a box of %s of a tensor of %s", args->name,
                         weir_shape_text(&shape, want, sizeof(want)),
                         weir_shape_text(&args->local_shape, got, sizeof(got)));
    out->placement = n_cut == 0 ? WEIR_PLACEMENT_REPLICATE : WEIR_PLACEMENT_BOX;
    if (n_cut > 0)
        out->box = *box;
    return WEIR_OK;
}

/* Equal chunks, or the rank alone does not tell where one begins. */
static weir_status describe_shard(const weir_describe_args *args, weir_tensor_descriptor *out)
{
    uint64_t n_ranks = args->n_ranks > 0 ? args->n_ranks : 1, whole;
    if (args->axis >= args->global_shape.rank || args->local_shape.rank != args->global_shape.rank)
        return weir_fail(WEIR_ERR_INVALID, "tensor '%s': axis %u, local rank %u, global rank %u",
                         args->name, args->axis, args->local_shape.rank, args->global_shape.rank);
    uint64_t extent = args->local_shape.dim[args->axis];
    if (args->rank >= n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "tensor '%s': rank %u of %" PRIu64, args->name,
                         args->rank, n_ranks);
    if (__builtin_mul_overflow(extent, n_ranks, &whole) ||
        whole != args->global_shape.dim[args->axis])
        return weir_fail(
            WEIR_ERR_UNSUPPORTED,
            "tensor '%s' has uneven DTensor sharding on axis %u: %" PRIu64
            " here on each of %" PRIu64 " ranks, %" PRIu64 " in all; describe it by its range",
            args->name, args->axis, extent, n_ranks, args->global_shape.dim[args->axis]);
    weir_describe_args range = *args;
    range.range_lo = args->rank * extent;
    range.range_hi = range.range_lo + extent;
    return describe_range(&range, out);
}

static weir_status describe_placement(const weir_describe_args *args, weir_tensor_descriptor *out)
{
    if (args->source >= WEIR_SOURCE_REPLICATE && args->mesh_rank > 1)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "DTensor with ND mesh is not supported in v0; only 1D meshes are. "
                         "tensor=%s; describe it by its box",
                         args->name);
    switch (args->source) {
    case WEIR_SOURCE_PLAIN:
        out->global_shape = args->local_shape;
        return WEIR_OK;
    case WEIR_SOURCE_RANGE:
        return describe_range(args, out);
    case WEIR_SOURCE_BOX:
        return describe_box(args, out);
    case WEIR_SOURCE_REPLICATE:
        return WEIR_OK;
    case WEIR_SOURCE_SHARD:
        return describe_shard(args, out);
    case WEIR_SOURCE_PARTIAL:
        out->placement = WEIR_PLACEMENT_PARTIAL;
        out->shard_axis = args->axis;
        out->is_expert = false;
        out->expert_axis = 0;
        out->expert_ids = NULL;
        out->n_expert_ids = 0;
        return WEIR_OK;
    }
    return weir_fail(WEIR_ERR_INVALID, "tensor '%s': source %d is none", args->name,
                     (int)args->source);
}

weir_status weir_tensor_describe(const weir_describe_args *args, weir_tensor_descriptor *out)
{
    weir_describe_args a;
    weir_status status = weir_options_read(args, "weir_describe_args", &a, sizeof(a));
    if (status != WEIR_OK)
        return status;
    if (a.name == NULL || weir_dtype_torch_name(a.dtype) == NULL ||
        a.local_shape.rank > WEIR_MAX_RANK || a.global_shape.rank > WEIR_MAX_RANK)
        return weir_fail(WEIR_ERR_INVALID, "tensor '%s': dtype %s, rank %u",
                         a.name != NULL ? a.name : "", weir_dtype_name(a.dtype),
                         a.local_shape.rank);
    weir_tensor_descriptor d = { .name = a.name,
                                 .global_shape = a.global_shape,
                                 .dtype = weir_dtype_torch_name(a.dtype),
                                 .is_expert = a.is_expert,
                                 .expert_axis = a.expert_axis,
                                 .expert_ids = a.expert_ids,
                                 .n_expert_ids = a.n_expert_ids,
                                 .compile_target = a.compile_target,
                                 .compile_metadata = a.compile_metadata };
    status = describe_placement(&a, &d);
    if (status == WEIR_OK)
        status = weir_tensor_descriptor_check(&d);
    if (status == WEIR_OK)
        *out = d;
    return status;
}

weir_status weir_even_expert_owners(uint32_t n_experts, uint32_t ep_world_size, uint32_t *owners)
{
    if (ep_world_size == 0)
        return weir_fail(WEIR_ERR_INVALID, "ep_world_size must be positive");
    if (n_experts % ep_world_size != 0)
        return weir_fail(WEIR_ERR_INVALID, "%u experts are not divisible by ep_world_size %u",
                         n_experts, ep_world_size);
    for (uint32_t x = 0; x < n_experts; x++)
        owners[x] = x / (n_experts / ep_world_size);
    return WEIR_OK;
}
