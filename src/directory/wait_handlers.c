/* SPDX-License-Identifier: Apache-2.0 */
/* wait_handlers.c - DirectoryService: what a trainer waits for, that replicas hold its version and
 * that nobody reads an older one. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/fleet_handlers.h"

#define MOST_RETIRED 256u
#define MOST_NAMES 1024u /* of readers, in an answer */
#define MOST_STRAGGLERS 64u

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

static weir_status fill_words(weir_directory_call *call, const weir_store_version *version,
                              Weir__Directory__AwaitReplicasResponse *response)
{
    word_list list = { .version = version, .arena = call->arena };
    weir_store_each_word(call->core->store, version->model, take_word, &list);
    list.words = weir_arena_zeroed(call->arena, list.n_room + 1, sizeof(*list.words));
    if (list.words == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_store_each_word(call->core->store, version->model, take_word, &list);
    response->words = list.words;
    response->n_words = list.n;
    return list.has_failed ? WEIR_ERR_NO_MEMORY : WEIR_OK;
}

typedef struct straggler_list {
    const weir_directory_call *call;
    const weir_store_version *version;
    Weir__Directory__Straggler **items;
    size_t n;
} straggler_list;

static uint32_t ms_since(uint64_t then_ms, uint64_t now_ms)
{
    uint64_t ms = now_ms > then_ms ? now_ms - then_ms : 0;
    return ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

static bool take_straggler(void *context, const weir_store_straggler *straggler)
{
    straggler_list *list = context;
    const weir_directory_call *call = list->call;
    const weir_store_version *version = list->version;
    Weir__Directory__Straggler *item = list->items[list->n++];
    item->worker_id = (char *)straggler->worker_id;
    item->worker_rank = straggler->rank;
    item->reads = straggler->reads;
    item->has_number = straggler->has_number;
    item->version_number = straggler->number;
    if (straggler->ended_at_ms != 0)
        item->ended_ms = ms_since(straggler->ended_at_ms, call->now_ms);
    item->ended_ms += straggler->ended_at_ms != 0 && item->ended_ms == 0;
    if (version->ready_at_ms != 0)
        item->silent_ms = ms_since(version->ready_at_ms, call->now_ms);
    const weir_progress_entry *entry =
        weir_progress_find(&call->core->progress, straggler->worker_id);
    if (entry != NULL && entry->number == version->number &&
        strcmp(entry->model, version->model) == 0) {
        item->stop = (char *)entry->stop;
        item->slowest_from = (char *)entry->slowest_from;
        item->silent_ms = ms_since(entry->at_ms, call->now_ms);
    }
    return list->n < MOST_STRAGGLERS;
}

static weir_status fill_stragglers(weir_directory_call *call, const weir_store_version *version,
                                   Weir__Directory__AwaitReplicasResponse *response)
{
    Weir__Directory__Straggler *items =
        weir_arena_zeroed(call->arena, MOST_STRAGGLERS, sizeof(*items));
    straggler_list list = { .call = call, .version = version };
    list.items = weir_arena_zeroed(call->arena, MOST_STRAGGLERS, sizeof(*list.items));
    if (items == NULL || list.items == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < MOST_STRAGGLERS; i++) {
        weir__directory__straggler__init(&items[i]);
        list.items[i] = &items[i];
    }
    weir_store_each_straggler(call->core->store, version->uid, call->now_ms, take_straggler, &list);
    response->stragglers = list.items;
    response->n_stragglers = list.n;
    return WEIR_OK;
}

static weir_rpc_code answer_await(weir_directory_call *call, const weir_store_version *version,
                                  uint32_t n_holding, bool is_over)
{
    WEIR_MAKE_MESSAGE(Weir__Directory__AwaitReplicasResponse,
                      weir__directory__await_replicas_response__init, response);
    weir_status status = fill_words(call, version, response);
    if (status == WEIR_OK && is_over)
        status = fill_stragglers(call, version, response);
    if (status == WEIR_OK)
        status =
            weir_recall_slots(call, version, &response->slot_workers, &response->slot_contents);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    response->n_slot_workers = response->n_slot_contents = version->n_slots;
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
    const weir_store_version *version = NULL;
    weir_store *store = call->core->store;
    weir_status status = weir_store_get_version(store, request->version_id, &version);
    if (status == WEIR_OK && strcmp(version->model, request->model_name) != 0)
        status = weir_fail(WEIR_ERR_INVALID, "version '%.16s' is of another model_name",
                           request->version_id);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    size_t n_holding = weir_store_count_holders(store, version->uid, call->now_ms);
    bool is_done = n_holding >= request->n_replicas || version->state == WEIR_STORE_ABORTED;
    if (!is_done && !call->is_last)
        return WEIR_RPC_LATER;
    return answer_await(call, version, (uint32_t)n_holding, !is_done);
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
} reader_list;

static bool take_reader(void *context, const char *worker_id, uint64_t expires_ms)
{
    reader_list *list = context;
    (void)expires_ms;
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

/* Who reads this version from its trainers; a version that only peers are read of keeps nobody. */
static void take_readers(const weir_directory_call *call, const char *uid, reader_list *readers)
{
    weir_store_each_direct_reader(call->core->store, uid, call->now_ms, take_reader, readers);
}

weir_rpc_code weir_retire_look(weir_directory_call *call)
{
    const retire_request *request = (const void *)call->request;
    reader_list readers;
    if (!make_reader_list(call, &readers))
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    for (size_t i = 0; i < request->n_version_ids; i++) {
        const char *uid = request->version_ids[i];
        if (weir_store_can_retire(call->core->store, uid, request->source_slot_id,
                                  request->worker_id, call->now_ms))
            return WEIR_DIRECTORY_TAKE;
        if (has_shard(call, request, uid))
            take_readers(call, uid, &readers);
    }
    return answer_retired(call, &readers);
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
        bool is_read = false;
        weir_status status = weir_store_retire_shard(call->core->store, request->version_ids[i],
                                                     request->source_slot_id, request->worker_id,
                                                     call->now_ms, &is_read);
        if (status != WEIR_OK)
            return weir_directory_core_refuse(status, call->text);
        if (is_read)
            take_readers(call, request->version_ids[i], &readers);
    }
    return answer_retired(call, &readers);
}
