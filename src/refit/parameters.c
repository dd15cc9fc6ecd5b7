/* SPDX-License-Identifier: Apache-2.0 */
/* parameters.c - the live parameters that a replica worker installs into, and how they become its:
 * registered with tags, or as config.json describes them, in memory of Weir's or of an engine.
 *
 * Until one of the four ways has ended well the replica has none, and another can be tried.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "refit/engine_part.h"
#include "refit/replica.h"

#define PARAMETER_ALIGNMENT 256u

/* ---- where they lie --------------------------------------------------------------------------*/

/* Others read this replica one-sided from memory, and trainers that push write there; a transport
 * that writes files is none for that. */
static void choose_serving(weir_replica *replica)
{
    const weir_transport_ops *ops;
    const char *name = weir_work_memory(replica->work) == WEIR_MEMORY_CUDA ? "cuda_ipc" : NULL;
    if (weir_transport_get(name, &ops) != WEIR_OK || !(ops->caps & WEIR_CAP_LIVENESS) ||
        weir_worker_link(&replica->worker, ops->name, &replica->serving) != WEIR_OK) {
        replica->serving = (weir_link){ NULL, NULL };
        weir_log(WEIR_LOG_INFO, "replica %s cannot be read by others: no transport for it: %s",
                 replica->worker.id, weir_last_error());
    }
}

/* From now on the parameters lie there. */
static weir_status settle_memory(weir_replica *replica, uint32_t memory, unsigned device)
{
    if (replica->work != NULL)
        return WEIR_OK;
    replica->worker.device = device;
    weir_status status = weir_work_open(memory, device, replica->worker.pool, &replica->work);
    if (status == WEIR_OK)
        status = weir_task_open(replica->work, &replica->derive);
    if (status == WEIR_OK)
        choose_serving(replica);
    return status;
}

static weir_status reserve_parameters(weir_replica *replica, size_t n)
{
    if (replica->n_parameters != 0)
        return weir_fail(WEIR_ERR_EXISTS, "replica %s has registered its parameters already",
                         replica->worker.id);
    if (n == 0)
        return weir_fail(WEIR_ERR_INVALID, "no parameters to register");
    replica->live = weir_arena_zeroed(&replica->arena, n, sizeof(*replica->live));
    replica->wanted = weir_arena_zeroed(&replica->arena, n, sizeof(*replica->wanted));
    replica->staging_offset = weir_arena_zeroed(&replica->arena, n, sizeof(uint64_t));
    if (replica->live == NULL || replica->wanted == NULL || replica->staging_offset == NULL)
        return WEIR_ERR_NO_MEMORY;
    return WEIR_OK;
}

/* The first n are known and placed: the replica can be installed into, and be read. */
static weir_status settle_parameters(weir_replica *replica, size_t n)
{
    replica->n_parameters = n;
    weir_status status = weir_load_open(replica);
    if (status == WEIR_OK)
        status = weir_holding_open(replica);
    if (status != WEIR_OK)
        replica->n_parameters = 0;
    return status;
}

/* ---- with tags -------------------------------------------------------------------------------*/

static weir_status copy_parameter(weir_replica *replica, size_t i, const weir_tensor *tensor,
                                  const weir_parameter *tag)
{
    const char *metadata = tag->compile_metadata != NULL ? tag->compile_metadata : "{}";
    const char *target = tag->compile_target != NULL ? tag->compile_target : WEIR_TARGET_HF_RAW;
    if (tensor->name == NULL || tensor->data == NULL)
        return weir_fail(WEIR_ERR_INVALID, "parameter %zu has no %s", i,
                         tensor->name == NULL ? "name" : "memory");
    char *name = weir_arena_strdup(&replica->arena, tensor->name);
    weir_parameter *wanted = &replica->wanted[i];
    *wanted = *tag;
    wanted->name = name;
    wanted->dtype = tensor->dtype;
    wanted->shape = tensor->shape;
    wanted->compile_target = weir_arena_strdup(&replica->arena, target);
    wanted->compile_metadata = weir_arena_strdup(&replica->arena, metadata);
    if (name == NULL || wanted->compile_target == NULL || wanted->compile_metadata == NULL)
        return WEIR_ERR_NO_MEMORY;
    replica->live[i] = *tensor;
    replica->live[i].name = name;
    uint64_t n_bytes;
    return weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes);
}

static bool is_head(const char *name)
{
    const char *found = strstr(name, "lm_head");
    return found != NULL && (found == name || found[-1] == '.');
}

/* By address; of several at one, a head behind the embeddings that it is made of. */
static int compare_places(const void *a, const void *b, void *context)
{
    const weir_tensor *live = context;
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    uintptr_t x = (uintptr_t)live[i].data, y = (uintptr_t)live[j].data;
    if (x != y)
        return x < y ? -1 : 1;
    int heads = is_head(live[i].name) - is_head(live[j].name);
    return heads != 0 ? heads : (i > j) - (i < j);
}

static bool is_same_memory(const weir_tensor *a, const weir_tensor *b)
{
    return a->data == b->data && a->dtype == b->dtype && weir_shape_equal(&a->shape, &b->shape);
}

/* A tied tensor that the engine has under several names is one parameter. */
static weir_status drop_aliases(weir_replica *replica, size_t *n)
{
    uint32_t *order = weir_alloc((*n + 1) * sizeof(*order));
    bool *drop = weir_alloc_zeroed(*n + 1, sizeof(*drop));
    size_t n_left = 0;
    for (size_t i = 0; order != NULL && i < *n; i++)
        order[i] = (uint32_t)i;
    if (order != NULL && drop != NULL)
        qsort_r(order, *n, sizeof(*order), compare_places, replica->live);
    for (size_t i = 1; order != NULL && drop != NULL && i < *n; i++)
        drop[order[i]] = is_same_memory(&replica->live[order[i - 1]], &replica->live[order[i]]);
    for (size_t i = 0; drop != NULL && i < *n; i++) {
        replica->live[n_left] = replica->live[i];
        replica->wanted[n_left] = replica->wanted[i];
        n_left += !drop[i];
    }
    weir_status status = order != NULL && drop != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    weir_free(order);
    weir_free(drop);
    *n = n_left;
    return status;
}

weir_status weir_replica_register(weir_replica *replica, const weir_tensor *tensors,
                                  const weir_parameter *tags, size_t n_tensors)
{
    size_t n = n_tensors;
    uint32_t memory = WEIR_MEMORY_HOST;
    unsigned device = 0;
    replica->derived = NULL; /* of an attempt to describe them that failed */
    replica->n_derived = 0;
    replica->filled_bytes = NULL;
    weir_status status = reserve_parameters(replica, n_tensors);
    for (size_t i = 0; i < n_tensors && status == WEIR_OK; i++)
        status = copy_parameter(replica, i, &tensors[i], &tags[i]);
    if (status == WEIR_OK)
        status = drop_aliases(replica, &n);
    if (status == WEIR_OK)
        status = weir_work_locate_all(tensors, n_tensors, &memory, &device);
    if (status == WEIR_OK)
        status = settle_memory(replica, memory, device);
    return status == WEIR_OK ? settle_parameters(replica, n) : status;
}

/* ---- described by config.json ----------------------------------------------------------------*/

static weir_status describe_engine(weir_replica *replica)
{
    if (replica->settings.config == NULL)
        return weir_fail(WEIR_ERR_INVALID,
                         "replica %s needs the engine's config.json to know its parameters",
                         replica->worker.id);
    const char *family = replica->settings.family;
    size_t n_sources;
    weir_status status = WEIR_OK;
    weir_family_sources_free(replica->described); /* of an attempt that failed */
    replica->described = NULL;
    if (family == NULL)
        status = weir_family_of_config(replica->settings.config, &family);
    if (status == WEIR_OK)
        status = weir_family_sources(family, replica->settings.config, WEIR_NAMING_HF,
                                     &replica->described, &n_sources);
    if (status != WEIR_OK)
        return status;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = family;
    options.layout = replica->settings.layout;
    options.conversion = replica->settings.conversion;
    options.config = replica->settings.config;
    return weir_mapping_open(&options, replica->described, n_sources, &replica->mapping);
}

/* All of the engine's parameters, or this worker's part of them. */
static weir_status describe_part(weir_replica *replica, const weir_parameter **out, size_t *out_n)
{
    weir_engine_part part;
    if (replica->mesh_text[0] == '\0') {
        *out = weir_mapping_parameters(replica->mapping, out_n);
        replica->derived = weir_mapping_derived(replica->mapping, &replica->n_derived);
        return WEIR_OK;
    }
    weir_status status = weir_engine_part_of(replica->mapping, &replica->mesh, replica->mesh_worker,
                                             &replica->arena, &part);
    if (status != WEIR_OK)
        return status;
    *out = part.parameters;
    *out_n = part.n_parameters;
    replica->derived = part.derived;
    replica->n_derived = part.n_derived;
    replica->filled_bytes = part.filled_bytes;
    return WEIR_OK;
}

static weir_status describe_parameters(weir_replica *replica, const weir_parameter **out,
                                       size_t *out_n)
{
    weir_status status = replica->mapping == NULL ? describe_engine(replica) : WEIR_OK;
    if (status == WEIR_OK)
        status = describe_part(replica, out, out_n);
    return status;
}

/* ---- described, in memory of Weir's ----------------------------------------------------------*/

/* One block for all parameters, from the transport that others will read it through when there is
 * one: it moves its own memory best. */
static weir_status allocate_block(weir_replica *replica, uint64_t n_bytes, unsigned char **out)
{
    weir_status status;
    replica->worker.counters.allocations++;
    if (replica->serving.ops == NULL) {
        status = weir_work_allocate(replica->work, n_bytes, &replica->owned);
        replica->owned_bytes = n_bytes;
        *out = replica->owned;
        return status;
    }
    replica->worker.counters.registrations++;
    replica->regions = weir_arena_zeroed(&replica->arena, 1, sizeof(*replica->regions));
    if (replica->regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    status =
        replica->serving.ops->allocate(replica->serving.transport, n_bytes, &replica->regions[0]);
    if (status != WEIR_OK)
        return status;
    replica->n_regions = 1;
    *out = replica->serving.ops->region_data(replica->regions[0]);
    return WEIR_OK;
}

static weir_status aligned_bytes(const weir_parameter *parameter, uint64_t *out_n_bytes)
{
    uint64_t n_bytes = 0;
    weir_status status = weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes);
    *out_n_bytes = (n_bytes + PARAMETER_ALIGNMENT - 1) / PARAMETER_ALIGNMENT * PARAMETER_ALIGNMENT;
    return status;
}

static weir_status place_parameters(weir_replica *replica, const weir_parameter *parameters,
                                    size_t n)
{
    uint64_t total_bytes = 0, n_bytes = 0;
    unsigned char *block;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        status = aligned_bytes(&parameters[i], &n_bytes);
        total_bytes += n_bytes;
    }
    if (status == WEIR_OK)
        status = allocate_block(replica, total_bytes ? total_bytes : 1, &block);
    if (status != WEIR_OK) {
        weir_error_prefix("live parameters of %" PRIu64 " bytes", total_bytes);
        return status;
    }
    for (size_t i = 0; i < n; i++) {
        replica->live[i] =
            (weir_tensor){ parameters[i].name, parameters[i].dtype, parameters[i].shape, block };
        aligned_bytes(&parameters[i], &n_bytes);
        block += n_bytes;
    }
    memcpy(replica->wanted, parameters, n * sizeof(*parameters));
    return WEIR_OK;
}

weir_status weir_replica_allocate(weir_replica *replica)
{
    size_t n = 0;
    const weir_parameter *parameters = NULL;
    weir_status status = describe_parameters(replica, &parameters, &n);
    if (status == WEIR_OK)
        status = reserve_parameters(replica, n);
    if (status == WEIR_OK)
        status = settle_memory(replica, replica->asked_memory, replica->asked_device);
    if (status == WEIR_OK)
        status = place_parameters(replica, parameters, n);
    return status == WEIR_OK ? settle_parameters(replica, n) : status;
}

/* ---- described, in an engine's memory --------------------------------------------------------*/

/* dtype and shape of both, which differ. */
static weir_status refuse(const weir_replica *replica, const weir_parameter *wanted,
                          const weir_tensor *given)
{
    char there[WEIR_SHAPE_TEXT], described[WEIR_SHAPE_TEXT];
    return weir_fail(WEIR_ERR_LAYOUT,
                     "parameter %s is %s %s here, worker %u of the engine that config.json "
                     "describes has %s %s (%s)",
                     wanted->name, weir_dtype_name(given->dtype),
                     weir_shape_text(&given->shape, there, sizeof(there)), replica->mesh_worker,
                     weir_dtype_name(wanted->dtype),
                     weir_shape_text(&wanted->shape, described, sizeof(described)),
                     wanted->compile_target);
}

/* The parameters that are described, at the addresses of found[i]. */
static weir_status place_there(weir_replica *replica, const weir_parameter *parameters,
                               const weir_tensor *found, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (found[i].dtype != parameters[i].dtype ||
            !weir_shape_equal(&found[i].shape, &parameters[i].shape))
            return refuse(replica, &parameters[i], &found[i]);
        replica->live[i] = found[i];
        replica->live[i].name = parameters[i].name;
    }
    memcpy(replica->wanted, parameters, n * sizeof(*parameters));
    return WEIR_OK;
}

static weir_status settle_there(weir_replica *replica, const weir_parameter *parameters,
                                const weir_tensor *found, size_t n)
{
    uint32_t memory = WEIR_MEMORY_HOST;
    unsigned device = 0;
    weir_status status = place_there(replica, parameters, found, n);
    if (status == WEIR_OK)
        status = weir_work_locate_all(found, n, &memory, &device);
    if (status == WEIR_OK)
        status = settle_memory(replica, memory, device);
    return status == WEIR_OK ? settle_parameters(replica, n) : status;
}

weir_status weir_replica_adopt(weir_replica *replica, const weir_tensor *tensors, size_t n_tensors)
{
    size_t n = 0;
    const weir_parameter *parameters = NULL;
    weir_status status = describe_parameters(replica, &parameters, &n);
    if (status == WEIR_OK && n != n_tensors)
        status = weir_fail(WEIR_ERR_LAYOUT,
                           "config.json describes %zu parameters, memory is given for %zu", n,
                           n_tensors);
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        if (strcmp(tensors[i].name, parameters[i].name) != 0)
            status = weir_fail(WEIR_ERR_LAYOUT,
                               "parameter %zu is %s as config.json describes it, the memory is "
                               "that of %s",
                               i, parameters[i].name, tensors[i].name);
    }
    if (status == WEIR_OK)
        status = reserve_parameters(replica, n);
    return status == WEIR_OK ? settle_there(replica, parameters, tensors, n) : status;
}

/* ---- described, in an engine's memory, by name -----------------------------------------------*/

/* What is given, sorted by name, and what of it the model has. */
typedef struct pairing {
    const weir_tensor **sorted; /* n_given */
    size_t n_given;
    weir_tensor *found; /* parallel to the parameters */
    bool *used;         /* parallel to what is given, in the caller's order */
} pairing;

static int compare_names(const void *a, const void *b)
{
    const weir_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int compare_name(const void *name, const void *tensor)
{
    const weir_tensor *const *there = tensor;
    return strcmp(name, (*there)->name);
}

static weir_status open_pairing(pairing *p, const weir_tensor *tensors, size_t n_given, size_t n)
{
    p->n_given = n_given;
    p->sorted = weir_alloc_zeroed(n_given + 1, sizeof(const weir_tensor *));
    p->found = weir_alloc_zeroed(n + 1, sizeof(*p->found));
    p->used = weir_alloc_zeroed(n_given + 1, sizeof(*p->used));
    if (p->sorted == NULL || p->found == NULL || p->used == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_given; i++) {
        p->sorted[i] = &tensors[i];
        if (tensors[i].name == NULL || tensors[i].data == NULL)
            return weir_fail(WEIR_ERR_INVALID, "parameter %zu%s%s has no %s", i,
                             tensors[i].name != NULL ? ", " : "",
                             tensors[i].name != NULL ? tensors[i].name : "",
                             tensors[i].name != NULL ? "memory" : "name");
    }
    qsort(p->sorted, n_given, sizeof(const weir_tensor *), compare_names);
    for (size_t i = 1; i < n_given; i++) {
        if (strcmp(p->sorted[i - 1]->name, p->sorted[i]->name) == 0)
            return weir_fail(WEIR_ERR_INVALID, "parameter %s is given twice", p->sorted[i]->name);
    }
    return WEIR_OK;
}

static void close_pairing(pairing *p)
{
    weir_free(p->sorted);
    weir_free(p->found);
    weir_free(p->used);
}

/* A tied tensor that the engine has under another name, too. */
static bool is_alias(const pairing *p, const weir_tensor *given, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (is_same_memory(&p->found[i], given))
            return true;
    }
    return false;
}

/* Every parameter must be there; *out_n_extra: how many tensors are no parameter. */
static weir_status pair(pairing *p, const weir_tensor *tensors, const weir_parameter *parameters,
                        size_t n, size_t *out_n_extra)
{
    size_t n_missing = 0, first = 0;
    for (size_t i = 0; i < n; i++) {
        const weir_tensor **there = bsearch(parameters[i].name, p->sorted, p->n_given,
                                            sizeof(const weir_tensor *), compare_name);
        if (there == NULL) {
            first = n_missing++ == 0 ? i : first;
            continue;
        }
        p->found[i] = **there;
        p->used[*there - tensors] = true;
    }
    *out_n_extra = p->n_given + n_missing - n;
    for (size_t i = 0; i < p->n_given && n_missing == 0 && *out_n_extra > 0; i++) {
        if (!p->used[i] && is_alias(p, &tensors[i], n)) {
            p->used[i] = true;
            --*out_n_extra;
        }
    }
    if (n_missing == 0)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "parameter %s of the engine is missing, %zu of %zu in all: %zu tensors are "
                     "given, of which the model has %zu",
                     parameters[first].name, n_missing, n, p->n_given, n - n_missing);
}

/* Nobody would hear that they are not followed. */
static weir_status refuse_extra(const pairing *p, const weir_tensor *tensors, size_t n_extra)
{
    size_t i = 0;
    while (p->used[i])
        i++;
    return weir_fail(
        WEIR_ERR_LAYOUT,
        "%s is no parameter of the model, %zu in all of the %zu tensors that are given",
        tensors[i].name, n_extra, p->n_given);
}

static weir_status bind(weir_replica *replica, const weir_tensor *tensors, size_t n_tensors,
                        bool *used, pairing *p)
{
    size_t n = 0, n_extra = 0;
    const weir_parameter *parameters = NULL;
    weir_status status = describe_parameters(replica, &parameters, &n);
    if (status == WEIR_OK)
        status = reserve_parameters(replica, n);
    if (status == WEIR_OK)
        status = open_pairing(p, tensors, n_tensors, n);
    if (status == WEIR_OK)
        status = pair(p, tensors, parameters, n, &n_extra);
    if (status == WEIR_OK && used == NULL && n_extra > 0)
        status = refuse_extra(p, tensors, n_extra);
    if (status == WEIR_OK)
        status = settle_there(replica, parameters, p->found, n);
    if (status == WEIR_OK && used != NULL)
        memcpy(used, p->used, n_tensors * sizeof(*used));
    return status;
}

weir_status weir_replica_bind(weir_replica *replica, const weir_tensor *tensors, size_t n_tensors,
                              bool *used)
{
    pairing p = { .sorted = NULL };
    if (tensors == NULL && n_tensors > 0)
        return weir_fail(WEIR_ERR_INVALID, "%zu parameters at NULL", n_tensors);
    weir_status status = bind(replica, tensors, n_tensors, used, &p);
    close_pairing(&p);
    return status;
}

/* ---- what there is ---------------------------------------------------------------------------*/

const weir_tensor *weir_replica_parameters(const weir_replica *replica, size_t *out_n)
{
    *out_n = replica->n_parameters;
    return replica->live;
}
