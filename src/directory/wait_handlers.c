/* SPDX-License-Identifier: Apache-2.0 */
/* wait_handlers.c - DirectoryService: what a trainer waits for, that replicas hold its version and
 * that nobody reads an older one. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/fleet_handlers.h"

#define MOST_RETIRED 256u
#define MOST_NAMES 1024u /* of readers, in an answer */

typedef Weir__Directory__AwaitReplicasRequest await_request;
typedef Weir__Directory__RetireVersionsRequest retire_request;
typedef Weir__Directory__ReplicaWord word_message;

/* ---- AwaitReplicas ---------------------------------------------------------------------------*/

weir_rpc_code weir_await_check(weir_directory_call *call)
{
    const await_request *request = (const void *)call->request;
    if (request->model_name[0] == '\0' || request->version_id[0] == '\0')
        return weir_directory_core_invalid(call, "model_name and version_id are required");
    return WEIR_RPC_OK;
}

weir_directory_bound weir_await_bound(const weir_directory_call *call)
{
    const await_request *request = (const void *)call->request;
    return (weir_directory_bound){ request->model_name, request->timeout_ms };
}

/* Replica workers that hold the version or a later one; an earlier attempt of the same number is
 * another version. */
typedef struct holder_count {
    const weir_store_version *version;
    uint32_t n;
} holder_count;

static bool count_holder(void *context, const weir_store_source *source)
{
    holder_count *count = context;
    const weir_store_version *version = count->version;
    bool is_replica = strcmp(source->role, "inference_replica") == 0 && source->has_step;
    bool is_ready = source->status == WEIR_STORE_SOURCE_READY;
    bool has_left = source->status == WEIR_STORE_SOURCE_STALE; /* having held it all the same */
    bool is_of_run = version->run[0] == '\0' || strcmp(source->run, version->run) == 0;
    bool is_this = strcmp(source->version_uid, version->uid) == 0;
    if (is_replica && is_of_run &&
        ((is_ready && source->step > version->number) || ((is_ready || has_left) && is_this)))
        count->n++;
    return true;
}

typedef struct word_list {
    const weir_store_version *version;
    weir_arena *arena;
    word_message **words; /* NULL: to be counted */
    size_t n, n_room;
    bool has_failed;
} word_list;

static void fill_word(word_list *list, const weir_store_word *word)
{
    word_message *message = weir_arena_alloc(list->arena, sizeof(*message));
    Weir__Directory__Stop *stops =
        weir_arena_zeroed(list->arena, word->n_spans + 1, sizeof(*stops));
    Weir__Directory__Stop **pointers =
        weir_arena_zeroed(list->arena, word->n_spans + 1, sizeof(*pointers));
    list->has_failed = message == NULL || stops == NULL || pointers == NULL;
    if (list->has_failed)
        return;
    weir__directory__replica_word__init(message);
    message->worker_id = (char *)word->worker_id;
    message->worker_rank = word->rank;
    message->version_number = word->number;
    message->version_id = (char *)word->version_uid;
    message->status = (uint32_t)word->status;
    message->text = (char *)word->text;
    message->n_bytes = word->n_bytes;
    message->stops = pointers;
    message->n_stops = word->n_spans;
    for (size_t i = 0; i < word->n_spans; i++) {
        weir__directory__stop__init(&stops[i]);
        stops[i].name = (char *)word->spans[i].name;
        stops[i].begun_unix_us = word->spans[i].begun_us;
        stops[i].duration_us = word->spans[i].duration_us;
        stops[i].peer = (char *)word->spans[i].peer;
        stops[i].n_bytes = word->spans[i].n_bytes;
        pointers[i] = &stops[i];
    }
    list->words[list->n++] = message;
}

static bool take_word(void *context, const char *model, const weir_store_word *word)
{
    word_list *list = context;
    const weir_store_version *version = list->version;
    (void)model;
    if (strcmp(word->run, version->run) != 0 || strcmp(word->role, "inference_replica") != 0 ||
        word->number < version->number ||
        (word->number == version->number && strcmp(word->version_uid, version->uid) != 0))
        return true;
    if (list->words == NULL)
        list->n_room++;
    else if (list->n < list->n_room)
        fill_word(list, word);
    return !list->has_failed;
}

static weir_rpc_code answer_await(weir_directory_call *call, const weir_store_version *version,
                                  uint32_t n_holding)
{
    WEIR_MAKE_MESSAGE(Weir__Directory__AwaitReplicasResponse,
                      weir__directory__await_replicas_response__init, response);
    word_list list = { .version = version, .arena = call->arena };
    weir_store_each_word(call->core->store, version->model, take_word, &list);
    list.words = weir_arena_zeroed(call->arena, list.n_room + 1, sizeof(*list.words));
    if (list.words == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    weir_store_each_word(call->core->store, version->model, take_word, &list);
    if (list.has_failed)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    response->words = list.words;
    response->n_words = list.n;
    response->n_holding = n_holding;
    response->state = (Weir__Directory__VersionState)version->state;
    response->reason = (char *)version->reason;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

/* A refusal does not end it: that replica may come back and install it after all. */
weir_rpc_code weir_await_look(weir_directory_call *call)
{
    const await_request *request = (const void *)call->request;
    holder_count count = { .n = 0 };
    weir_status status =
        weir_store_get_version(call->core->store, request->version_id, &count.version);
    if (status == WEIR_OK && strcmp(count.version->model, request->model_name) != 0)
        status = weir_fail(WEIR_ERR_INVALID, "version '%.16s' is of another model_name",
                           request->version_id);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    weir_store_each_source(call->core->store, request->model_name, count_holder, &count);
    if (count.n < request->n_replicas && count.version->state != WEIR_STORE_ABORTED &&
        !call->is_last)
        return WEIR_RPC_LATER;
    return answer_await(call, count.version, count.n);
}

/* ---- RetireVersions --------------------------------------------------------------------------*/

weir_rpc_code weir_retire_check(weir_directory_call *call)
{
    const retire_request *request = (const void *)call->request;
    if (request->n_version_ids == 0 || request->n_version_ids > MOST_RETIRED)
        return weir_directory_core_invalid(call, "between 1 and 256 version_ids are required");
    if (request->source_slot_id[0] == '\0' || request->worker_id[0] == '\0')
        return weir_directory_core_invalid(call, "source_slot_id and worker_id are required");
    return WEIR_RPC_OK;
}

/* All of them are one trainer's, so of one model. */
weir_directory_bound weir_retire_bound(const weir_directory_call *call)
{
    const retire_request *request = (const void *)call->request;
    const weir_store_version *version = NULL;
    const char *model = "";
    for (size_t i = 0; i < request->n_version_ids && model[0] == '\0'; i++) {
        if (weir_store_get_version(call->core->store, request->version_ids[i], &version) == WEIR_OK)
            model = version->model;
    }
    return (weir_directory_bound){ model, request->timeout_ms };
}

typedef struct reader_list {
    weir_arena *arena;
    char **names;
    size_t n;
    bool has_any; /* of the version that is looked at */
} reader_list;

static bool take_reader(void *context, const char *worker_id, uint64_t expires_ms)
{
    reader_list *list = context;
    (void)expires_ms;
    list->has_any = true;
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->names[i], worker_id) == 0)
            return true;
    }
    char *name = list->n < MOST_NAMES ? weir_arena_strdup(list->arena, worker_id) : NULL;
    if (name != NULL)
        list->names[list->n++] = name;
    return name != NULL;
}

static bool has_shard(const weir_directory_call *call, const retire_request *request,
                      const char *uid)
{
    const weir_store_shard *shard = NULL;
    if (weir_store_list_shards(call->core->store, uid, &shard) != WEIR_OK)
        return false;
    for (; shard != NULL; shard = shard->next) {
        if (strcmp(shard->worker_id, request->worker_id) == 0 &&
            strcmp(shard->slot, request->source_slot_id) == 0)
            return true;
    }
    return false;
}

static weir_rpc_code answer_retired(weir_directory_call *call, const reader_list *readers)
{
    if (readers->n != 0 && !call->is_last)
        return WEIR_RPC_LATER;
    WEIR_MAKE_MESSAGE(Weir__Directory__RetireVersionsResponse,
                      weir__directory__retire_versions_response__init, response);
    response->leased_by = readers->names;
    response->n_leased_by = readers->n;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

static bool make_reader_list(weir_directory_call *call, reader_list *out)
{
    *out = (reader_list){ .arena = call->arena };
    out->names = weir_arena_zeroed(call->arena, MOST_NAMES + 1, sizeof(char *));
    return out->names != NULL;
}

weir_rpc_code weir_retire_look(weir_directory_call *call)
{
    const retire_request *request = (const void *)call->request;
    reader_list readers;
    if (!make_reader_list(call, &readers))
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    for (size_t i = 0; i < request->n_version_ids; i++) {
        const char *uid = request->version_ids[i];
        const weir_store_version *version = NULL;
        if (weir_store_get_version(call->core->store, uid, &version) != WEIR_OK ||
            !has_shard(call, request, uid))
            continue;
        if (version->state == WEIR_STORE_STAGING || version->state == WEIR_STORE_READY)
            return WEIR_DIRECTORY_TAKE;
        readers.has_any = false;
        weir_store_each_lease(call->core->store, uid, call->now_ms, take_reader, &readers);
        if (!readers.has_any)
            return WEIR_DIRECTORY_TAKE;
    }
    return answer_retired(call, &readers);
}

/* A version that was never READY must not become so once its bytes are somebody else's. */
static weir_status release(weir_directory_call *call, const retire_request *request,
                           const char *uid, weir_store_state state)
{
    const weir_store_version *version = NULL;
    if (state == WEIR_STORE_READY)
        return weir_store_delete_version(call->core->store, uid, call->now_ms, &version);
    if (state == WEIR_STORE_STAGING)
        return weir_store_abort_version(call->core->store, uid, request->worker_id,
                                        "its trainer took a shard back before all were in",
                                        call->now_ms, &version);
    return WEIR_OK;
}

static weir_status retire_one(weir_directory_call *call, const retire_request *request,
                              const char *uid, reader_list *readers)
{
    const weir_store_version *version = NULL;
    if (weir_store_get_version(call->core->store, uid, &version) != WEIR_OK)
        return WEIR_OK; /* forgotten */
    if (!has_shard(call, request, uid))
        return WEIR_OK;
    weir_status status = release(call, request, uid, version->state);
    if (status != WEIR_OK)
        return status;
    readers->has_any = false;
    weir_store_each_lease(call->core->store, uid, call->now_ms, take_reader, readers);
    if (readers->has_any)
        return WEIR_OK;
    bool is_deleted;
    return weir_store_delete_shard(call->core->store, uid, request->source_slot_id,
                                   request->worker_id, call->now_ms, &is_deleted);
}

weir_rpc_code weir_retire(weir_directory_call *call)
{
    const retire_request *request = (const void *)call->request;
    weir_rpc_code code = weir_retire_check(call);
    reader_list readers;
    if (code != WEIR_RPC_OK)
        return code;
    if (!make_reader_list(call, &readers))
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    for (size_t i = 0; i < request->n_version_ids; i++) {
        weir_status status = retire_one(call, request, request->version_ids[i], &readers);
        if (status != WEIR_OK)
            return weir_directory_core_refuse(status, call->text);
    }
    return answer_retired(call, &readers);
}
