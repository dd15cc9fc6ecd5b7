/* SPDX-License-Identifier: Apache-2.0 */
/* client_walk.c - ListSources once, then GetMetadata of each. */
#include "directory/client_walk.h"

#include <string.h>

#include "base/error.h"
#include "directory/client_core.h"

#define LIST_BYTES ((size_t)256 << 20) /* what a list may come to here */

typedef struct walk {
    weir_directory_client *client;
    const char *model;
    weir_deadline deadline;
    weir_arena arena; /* the list: the client's own is that of the last answer */
    weir_walked_source *sources;
    size_t n;
    bool cut;
} walk;

static weir_status call(const walk *w, const char *method, const ProtobufCMessage *request,
                        const ProtobufCMessage **out)
{
    unsigned left_ms = weir_deadline_left_ms(w->deadline);
    if (left_ms == 0)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "directory %s: the time for discovering sources of %s is up",
                         w->client->address, w->model);
    return weir_client_call_for(w->client, left_ms, &model_express__p2p__p2p_service__descriptor,
                                method, request, out);
}

static weir_status keep(walk *w, const ModelExpress__P2p__SourceInstanceRef *instance)
{
    weir_walked_source *source = &w->sources[w->n];
    *source = (weir_walked_source){ .updated_at_ms = instance->updated_at };
    source->source_id = weir_arena_strdup(&w->arena, instance->mx_source_id);
    source->worker_id = weir_arena_strdup(&w->arena, instance->worker_id);
    source->model = weir_arena_strdup(&w->arena, instance->model_name);
    if (source->source_id == NULL || source->worker_id == NULL || source->model == NULL)
        return WEIR_ERR_NO_MEMORY;
    w->n++;
    return WEIR_OK;
}

static weir_status list(walk *w, size_t n_max)
{
    ModelExpress__P2p__ListSourcesRequest request = MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST__INIT;
    request._model_name_filter_case =
        MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___MODEL_NAME_FILTER_MODEL_NAME_FILTER;
    request.model_name_filter = (char *)w->model;
    request._limit_case = MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___LIMIT_LIMIT;
    request.limit = n_max < UINT32_MAX ? (uint32_t)n_max + 1 : UINT32_MAX;
    const ProtobufCMessage *answer;
    weir_status status = call(w, "ListSources", &request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const ModelExpress__P2p__ListSourcesResponse *response = (const void *)answer;
    size_t n_room = response->n_instances < n_max ? response->n_instances : n_max;
    w->sources = weir_arena_zeroed(&w->arena, n_room + 1, sizeof(*w->sources));
    if (w->sources == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < response->n_instances && status == WEIR_OK; i++) {
        const ModelExpress__P2p__SourceInstanceRef *instance = response->instances[i];
        if (strcmp(instance->model_name, w->model) != 0)
            continue; /* a server that does not know the filter */
        w->cut = w->n == n_room;
        if (w->cut)
            break;
        status = keep(w, instance);
    }
    return status;
}

/* A server that refuses one source may give the others. */
static bool is_about_source(weir_status status)
{
    return status == WEIR_ERR_NOT_FOUND || status == WEIR_ERR_REFUSED ||
           status == WEIR_ERR_FORMAT || status == WEIR_ERR_CORRUPT;
}

static weir_status visit_one(const walk *w, weir_walked_source *source, weir_source_visit visit,
                             void *context)
{
    ModelExpress__P2p__GetMetadataRequest request = MODEL_EXPRESS__P2P__GET_METADATA_REQUEST__INIT;
    request.mx_source_id = (char *)source->source_id;
    request.worker_id = (char *)source->worker_id;
    const ProtobufCMessage *answer = NULL;
    weir_error_line why;
    weir_status status = call(w, "GetMetadata", &request.base, &answer);
    if (status != WEIR_OK && !is_about_source(status))
        return status;
    const ModelExpress__P2p__GetMetadataResponse *response = (const void *)answer;
    if (status != WEIR_OK) {
        weir_error_save(&why);
        source->why_not = why.text;
    } else if (!response->found || response->worker == NULL) {
        source->why_not = "it is gone since it was listed";
    } else {
        source->identity = response->identity;
        source->worker = response->worker;
        if (response->worker->updated_at != 0)
            source->updated_at_ms = response->worker->updated_at;
    }
    return visit(context, source);
}

static weir_status visit_all(walk *w, weir_source_visit visit, void *context)
{
    int64_t newest_ms = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < w->n; i++)
        newest_ms =
            w->sources[i].updated_at_ms > newest_ms ? w->sources[i].updated_at_ms : newest_ms;
    for (size_t i = 0; i < w->n && status == WEIR_OK; i++) {
        w->sources[i].newest_ms = newest_ms;
        w->sources[i].index = i;
        w->sources[i].n_sources = w->n;
        status = visit_one(w, &w->sources[i], visit, context);
    }
    return status;
}

weir_status weir_directory_walk_sources(weir_directory_client *client, const char *model,
                                        size_t n_max, weir_deadline deadline,
                                        weir_source_visit visit, void *context, bool *out_cut)
{
    walk w = { .client = client, .model = model, .deadline = deadline };
    weir_arena_init(&w.arena, LIST_BYTES);
    weir_status status = list(&w, n_max);
    if (status == WEIR_OK)
        status = visit_all(&w, visit, context);
    *out_cut = w.cut;
    weir_arena_close(&w.arena);
    return status;
}
