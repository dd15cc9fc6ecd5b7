/* SPDX-License-Identifier: Apache-2.0 */
/* store_version.c - versions: STAGING until every expected slot is covered, then READY, then
 * RELEASING by request; ABORTED from either of the first two.
 *
 * Checks stand in the order in which ModelExpress makes them, because clients see the first that
 * fails. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "directory/sha256.h"
#include "directory/store_record.h"

#define SLOT_TABLE (2 * WEIR_STORE_MAX_SLOTS)
/* "weir/MODEL/RUN/NUMBER/ATTEMPT" */
#define KEY_BYTES (2 * WEIR_STORE_MAX_NAME + 64)

/* ---- finding ---------------------------------------------------------------------------------*/

store_version *weir_store_version_record(const weir_store *store, const char *uid)
{
    store_node *node =
        weir_store_index_first(&store->versions_by_uid, weir_store_hash_text(store->seed, uid));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_version *version = WEIR_STORE_OF(store_version, by_uid, node);
        if (strcmp(version->uid, uid) == 0)
            return version;
    }
    return NULL;
}

store_version *weir_store_find_version(const weir_store *store, const char *uid)
{
    store_version *version = weir_store_version_record(store, uid);
    if (version == NULL)
        weir_fail(WEIR_ERR_NOT_FOUND, "no weight version '%.64s'", uid);
    return version;
}

store_version *weir_store_version_of_key(const weir_store *store, const char *key)
{
    store_node *node =
        weir_store_index_first(&store->versions_by_key, weir_store_hash_text(store->seed, key));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_version *version = WEIR_STORE_OF(store_version, by_key, node);
        if (strcmp(version->view.idempotency_key, key) == 0)
            return version;
    }
    return NULL;
}

/* ---- slots: an open table of their numbers, within the record ---------------------------------*/

static bool put_slot(const char *const *slots, uint16_t *table, size_t n_table, size_t i)
{
    size_t at = weir_store_hash_text(0, slots[i]) & (n_table - 1);
    for (; table[at] != 0; at = (at + 1) & (n_table - 1)) {
        if (strcmp(slots[table[at] - 1], slots[i]) == 0)
            return false;
    }
    table[at] = (uint16_t)(i + 1);
    return true;
}

size_t weir_store_find_slot(const store_version *version, const char *slot)
{
    size_t mask = version->n_slot_table - 1, at = weir_store_hash_text(0, slot) & mask;
    for (; version->slot_table[at] != 0; at = (at + 1) & mask) {
        size_t i = version->slot_table[at] - 1u;
        if (strcmp(version->view.slots[i], slot) == 0)
            return i;
    }
    return version->view.n_slots;
}

weir_status weir_store_check_slots(const weir_store_version *request)
{
    if (request->n_slots == 0)
        return weir_fail(WEIR_ERR_INVALID, "expected_source_slots must not be empty");
    if (request->n_slots > WEIR_STORE_MAX_SLOTS)
        return weir_fail(WEIR_ERR_NO_MEMORY,
                         "expected_source_slots has %zu names, at most %u are allowed",
                         request->n_slots, WEIR_STORE_MAX_SLOTS);
    uint16_t table[SLOT_TABLE] = { 0 };
    for (size_t i = 0; i < request->n_slots; i++) {
        weir_status status = weir_store_check_name("expected_source_slots", request->slots[i]);
        if (status != WEIR_OK)
            return status;
        if (!put_slot(request->slots, table, SLOT_TABLE, i))
            return weir_fail(WEIR_ERR_INVALID, "expected_source_slots must not contain duplicates");
    }
    return WEIR_OK;
}

/* ---- what a request must be ------------------------------------------------------------------*/

weir_status weir_store_check_version(const weir_store_version *request)
{
    weir_status status = weir_store_check_name("model_name", request->model);
    if (status == WEIR_OK)
        status = weir_store_check_name("idempotency_key", request->idempotency_key);
    if (status == WEIR_OK)
        status = weir_store_check_optional("layout_signature", request->layout_signature);
    if (status == WEIR_OK && strlen(weir_store_text(request->trace_id)) >= WEIR_STORE_TRACE_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "trace_id has more than %u bytes",
                         WEIR_STORE_TRACE_BYTES - 1);
    return status;
}

static weir_status check_base(const weir_store *store, const weir_store_version *request)
{
    if (request->payload == WEIR_STORE_FULL_TENSOR) {
        if (request->base_uid != NULL)
            return weir_fail(WEIR_ERR_INVALID, "base_version_id must be omitted for FULL_TENSOR");
        return WEIR_OK;
    }
    if (request->payload != WEIR_STORE_XOR_DELTA)
        return weir_fail(WEIR_ERR_INVALID, "payload_format must be FULL_TENSOR or XOR_DELTA");
    if (request->base_uid == NULL || request->base_uid[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "base_version_id is required for XOR_DELTA");
    const store_version *base = weir_store_find_version(store, request->base_uid);
    if (base == NULL)
        return WEIR_ERR_NOT_FOUND;
    if (strcmp(base->view.model, request->model) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "base_version_id has another model_name");
    if (base->view.state != WEIR_STORE_READY)
        return weir_fail(WEIR_ERR_REFUSED, "base_version_id is not READY");
    return WEIR_OK;
}

bool weir_store_is_same_request(const weir_store_version *a, const weir_store_version *b)
{
    if (strcmp(a->model, b->model) != 0 || a->has_number != b->has_number ||
        (a->has_number && a->number != b->number) || a->payload != b->payload ||
        (a->base_uid == NULL) != (b->base_uid == NULL) ||
        (a->base_uid != NULL && strcmp(a->base_uid, b->base_uid) != 0) || a->n_slots != b->n_slots)
        return false;
    for (size_t i = 0; i < a->n_slots; i++) {
        if (b->slots[i] == NULL || strcmp(a->slots[i], b->slots[i]) != 0)
            return false;
    }
    return true;
}

/* ---- the names of Weir's own versions --------------------------------------------------------*/

static void make_key(const weir_store_version *request, char out[KEY_BYTES])
{
    snprintf(out, KEY_BYTES, "weir/%s/%s/%" PRIu64 "/%" PRIu32, request->model, request->run,
             request->number, request->attempt);
}

/* A rank that comes through ModelExpress' call writes the same key: the record that it makes is of
 * that run. False: a key of another kind. */
static bool read_key(const weir_store_version *request, char run[WEIR_STORE_MAX_NAME + 1],
                     uint32_t *out_attempt)
{
    const char *key = request->idempotency_key;
    size_t n_model = strlen(request->model);
    if (!request->has_number || strncmp(key, "weir/", 5) != 0 ||
        strncmp(key + 5, request->model, n_model) != 0 || key[5 + n_model] != '/')
        return false;
    const char *begin = key + 5 + n_model + 1, *last = strrchr(begin, '/');
    char number[32];
    int n_number = snprintf(number, sizeof(number), "/%" PRIu64, request->number);
    if (last == NULL || last - begin < n_number || last[1] < '1' || last[1] > '9' ||
        strspn(last + 1, "0123456789") != strlen(last + 1) || strlen(last + 1) > 9 ||
        strncmp(last - n_number, number, (size_t)n_number) != 0)
        return false;
    size_t n_run = (size_t)(last - n_number - begin);
    if (n_run == 0 || n_run > WEIR_STORE_MAX_NAME)
        return false;
    memcpy(run, begin, n_run);
    run[n_run] = '\0';
    *out_attempt = (uint32_t)strtoul(last + 1, NULL, 10);
    return true;
}

/* The first attempt of this number that still goes on, else the one after the last. */
static uint32_t choose_attempt(const weir_store *store, const weir_store_version *request)
{
    const store_model *model = weir_store_find_model(store, request->model);
    const store_run *run = model != NULL ? weir_store_find_run(store, model, request->run) : NULL;
    uint32_t greatest = 0, open = 0;
    if (run == NULL)
        return 1;
    for (const store_link *link = run->versions.next; link != &run->versions; link = link->next) {
        const weir_store_version *view = &WEIR_STORE_OF(store_version, of_run, link)->view;
        if (!view->has_number || view->number < request->number)
            break;
        if (view->number > request->number)
            continue;
        greatest = view->attempt > greatest ? view->attempt : greatest;
        if (view->state == WEIR_STORE_STAGING || view->state == WEIR_STORE_READY)
            open = view->attempt;
    }
    return open != 0 ? open : greatest + 1;
}

static weir_status check_run(const weir_store_version *request)
{
    weir_status status = weir_store_check_name("model_name", request->model);
    if (status == WEIR_OK)
        status = weir_store_check_name("run", request->run);
    if (status == WEIR_OK && !request->has_number)
        status = weir_fail(WEIR_ERR_INVALID, "version_number is required with a run");
    return status;
}

/* ---- creating --------------------------------------------------------------------------------*/

/* Eight hex digits of a hash: two versions never share one. */
static weir_status make_uid(weir_store *store, uint64_t salt, char out[WEIR_STORE_UID_BYTES])
{
    uint64_t n_uids = store->n_uids;
    do {
        uint64_t input[2] = { salt, n_uids++ };
        char hash[WEIR_SHA256_HEX];
        weir_status status = weir_sha256_hex(input, sizeof(input), hash);
        if (status != WEIR_OK)
            return status;
        snprintf(out, WEIR_STORE_UID_BYTES, "%.8s", hash);
    } while (weir_store_version_record(store, out) != NULL);
    store->n_uids = n_uids;
    return WEIR_OK;
}

/* A directory that has lost its records gives a version the uid that it had, so that who reads it,
 * or holds it, still means the same. */
static weir_status choose_uid(weir_store *store, const char *wanted, uint64_t salt,
                              char out[WEIR_STORE_UID_BYTES])
{
    bool is_uid = strlen(wanted) == WEIR_STORE_UID_BYTES - 1 &&
                  strspn(wanted, "0123456789abcdef") == WEIR_STORE_UID_BYTES - 1;
    if (!is_uid || weir_store_version_record(store, wanted) != NULL)
        return make_uid(store, salt, out);
    memcpy(out, wanted, WEIR_STORE_UID_BYTES);
    return WEIR_OK;
}

static size_t slot_table_size(size_t n_slots)
{
    size_t n = 4;
    while (n < 2 * n_slots)
        n *= 2;
    return n;
}

size_t weir_store_version_bytes(const weir_store_version *version)
{
    size_t n = sizeof(store_version) + strlen(version->idempotency_key) + 1 +
               (version->base_uid != NULL ? strlen(version->base_uid) + 1 : 0);
    n += slot_table_size(version->n_slots) * sizeof(uint16_t);
    for (size_t i = 0; i < version->n_slots; i++)
        n += 3 * sizeof(char *) + sizeof(store_link) + sizeof(store_past) +
             strlen(version->slots[i]) + 1;
    return n;
}

static store_version *copy_version(weir_store *store, const weir_store_version *request)
{
    store_version *version = weir_store_alloc(store, weir_store_version_bytes(request));
    if (version == NULL)
        return NULL;
    size_t n_slots = request->n_slots;
    version->slots = (void *)(version + 1);
    version->pasts = (void *)(version->slots + n_slots);
    const char **names = (void *)(version->pasts + n_slots);
    version->coverage.missing = (void *)(names + n_slots);
    version->coverage.shards = (void *)(version->coverage.missing + n_slots);
    version->slot_table = (void *)(version->coverage.shards + n_slots);
    version->n_slot_table = slot_table_size(n_slots);
    char *at = (char *)(version->slot_table + version->n_slot_table);
    version->view = *request;
    version->view.idempotency_key = weir_store_put_text(&at, request->idempotency_key);
    if (request->base_uid != NULL)
        version->view.base_uid = weir_store_put_text(&at, request->base_uid);
    for (size_t i = 0; i < n_slots; i++) {
        names[i] = weir_store_put_text(&at, request->slots[i]);
        weir_store_list_init(&version->slots[i]);
        put_slot(names, version->slot_table, version->n_slot_table, i);
    }
    version->view.slots = names;
    weir_store_list_init(&version->shards);
    weir_store_list_init(&version->leases);
    return version;
}

/* The first rank that says one has said it for all. */
bool weir_store_adopt(store_version *version, const weir_store_version *request)
{
    const char *trace_id = weir_store_text(request->trace_id);
    const char *signature = weir_store_text(request->layout_signature);
    bool changed = false;
    if (version->trace_id[0] == '\0' && trace_id[0] != '\0') {
        snprintf(version->trace_id, sizeof(version->trace_id), "%s", trace_id);
        changed = true;
    }
    if (version->layout_signature[0] == '\0' && signature[0] != '\0') {
        snprintf(version->layout_signature, sizeof(version->layout_signature), "%s", signature);
        changed = true;
    }
    return changed;
}

static bool comes_before(const weir_store_version *a, const weir_store_version *b)
{
    if (!a->has_number || !b->has_number)
        return a->has_number && !b->has_number;
    return a->number != b->number ? a->number > b->number : a->attempt >= b->attempt;
}

static void put_in_lists(weir_store *store, store_version *version, store_run *run)
{
    version->run = run;
    version->model = run->model;
    version->view.run = run->name;
    version->view.model = run->model->name;
    run->n_versions++;
    run->model->n_users++;
    store->n_versions++;
    weir_store_list_add_first(&store->all_versions, &version->link);
    weir_store_list_add_first(&run->model->versions, &version->of_model);
    store_link *place = run->versions.next;
    while (version->view.has_number && place != &run->versions &&
           !comes_before(&version->view, &WEIR_STORE_OF(store_version, of_run, place)->view))
        place = place->next;
    weir_store_list_add_before(version->view.has_number ? place : &run->versions, &version->of_run);
    weir_store_index_add(&store->versions_by_uid, &version->by_uid,
                         weir_store_hash_text(store->seed, version->uid));
    weir_store_index_add(&store->versions_by_key, &version->by_key,
                         weir_store_hash_text(store->seed, version->view.idempotency_key));
}

weir_status weir_store_add_version(weir_store *store, const weir_store_version *request,
                                   const char *uid, uint64_t now_ms, store_version **out)
{
    store_model *model = weir_store_have_model(store, request->model);
    if (model == NULL)
        return WEIR_ERR_NO_MEMORY;
    store_run *run = weir_store_have_run(store, model, request->run);
    store_version *version = run != NULL ? copy_version(store, request) : NULL;
    if (version == NULL) {
        if (run != NULL)
            weir_store_let_run(store, run);
        else
            weir_store_let_model(store, model);
        return WEIR_ERR_NO_MEMORY;
    }
    memcpy(version->uid, uid, sizeof(version->uid));
    version->view.uid = version->uid;
    version->view.trace_id = version->trace_id;
    version->view.layout_signature = version->layout_signature;
    version->view.state = WEIR_STORE_STAGING;
    version->view.created_at_ms = version->touched_ms = now_ms;
    version->view.ready_at_ms = 0;
    version->view.reason = "";
    version->view.n_covered = 0;
    version->view.slot_workers = version->view.slot_contents = NULL;
    version->begun_generation = store->n_generations;
    weir_store_adopt(version, request);
    put_in_lists(store, version, run);
    *out = version;
    return WEIR_OK;
}

/* A repeated request must not fail because its base has moved on since the first one, so this comes
 * before the base is looked at. Who repeats one repeats its slots, which have been checked. */
static bool find_same(const weir_store *store, const weir_store_version *request,
                      store_version **out)
{
    store_version *version = weir_store_version_of_key(store, request->idempotency_key);
    *out = version;
    return version != NULL && weir_store_is_same_request(&version->view, request);
}

static weir_status make_version(weir_store *store, const weir_store_version *request, uint64_t salt,
                                uint64_t now_ms, store_version **out, store_version **out_over)
{
    char uid[WEIR_STORE_UID_BYTES];
    uint64_t n_uids = store->n_uids;
    weir_status status = weir_store_make_room(store, request->model, now_ms, out_over);
    if (status == WEIR_OK)
        status = choose_uid(store, weir_store_text(request->uid), salt, uid);
    if (status == WEIR_OK)
        status = weir_store_add_version(store, request, uid, now_ms, out);
    if (status == WEIR_OK) {
        store->events.n_made++;
        weir_store_tell_version(store, WEIR_STORE_VERSION_MADE, *out, NULL);
        weir_store_note_change(store, (*out)->model);
    } else {
        store->n_uids = n_uids;
    }
    return status;
}

static weir_status create(weir_store *store, const weir_store_version *request, uint64_t salt,
                          uint64_t now_ms, store_version **out)
{
    weir_status status = weir_store_check_version(request);
    if (status != WEIR_OK)
        return status;
    store_version *version = NULL;
    if (find_same(store, request, &version)) {
        if (weir_store_adopt(version, request))
            weir_store_note_change(store, version->model);
        *out = version;
        return WEIR_OK;
    }
    status = weir_store_check_slots(request);
    if (status == WEIR_OK && version != NULL)
        status = weir_fail(WEIR_ERR_EXISTS,
                           "idempotency_key was already used for a different WeightVersion");
    if (status == WEIR_OK)
        status = check_base(store, request);
    if (status != WEIR_OK)
        return status;
    store_version *over = NULL;
    status = make_version(store, request, salt, now_ms, out, &over);
    if (status == WEIR_OK && over != NULL)
        weir_store_drop_version(store, over);
    return status;
}

weir_status weir_store_begin_attempt(weir_store *store, const weir_store_version *request,
                                     uint64_t salt, uint64_t now_ms, store_version **out,
                                     store_version **out_over)
{
    char key[KEY_BYTES];
    weir_store_version wanted = *request;
    make_key(request, key);
    wanted.idempotency_key = key;
    if (weir_store_version_of_key(store, key) != NULL) /* names may hold a '/' */
        return weir_fail(WEIR_ERR_EXISTS,
                         "idempotency_key was already used for a different WeightVersion");
    return make_version(store, &wanted, salt, now_ms, out, out_over);
}

weir_status weir_store_create_version(weir_store *store, const weir_store_version *request,
                                      uint64_t salt, uint64_t now_ms,
                                      const weir_store_version **out)
{
    char key[KEY_BYTES], run[WEIR_STORE_MAX_NAME + 1] = "";
    weir_store_version wanted = *request;
    store_version *version = NULL;
    weir_status status = WEIR_OK;
    if (wanted.run != NULL && wanted.run[0] != '\0') {
        status = check_run(&wanted);
        if (status != WEIR_OK)
            return status;
        if (wanted.attempt == 0)
            wanted.attempt = choose_attempt(store, &wanted);
        make_key(&wanted, key);
        wanted.idempotency_key = key;
    } else {
        wanted.attempt = 0;
        if (wanted.model != NULL && wanted.idempotency_key != NULL)
            read_key(&wanted, run, &wanted.attempt);
        wanted.run = run;
    }
    status = create(store, &wanted, salt, now_ms, &version);
    if (status == WEIR_OK)
        *out = &version->view;
    return status;
}

weir_status weir_store_get_version(weir_store *store, const char *uid,
                                   const weir_store_version **out)
{
    const store_version *version = weir_store_find_version(store, uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    *out = &version->view;
    return WEIR_OK;
}

void weir_store_each_version(const weir_store *store, const char *model,
                             bool (*visit)(void *context, const weir_store_version *version,
                                           size_t n_leases),
                             void *context)
{
    const store_model *of = model != NULL ? weir_store_find_model(store, model) : NULL;
    if (model != NULL && of == NULL)
        return;
    const store_link *head = of != NULL ? &of->versions : &store->all_versions;
    for (const store_link *link = head->next; link != head; link = link->next) {
        const store_version *version = of != NULL ? WEIR_STORE_OF(store_version, of_model, link)
                                                  : WEIR_STORE_OF(store_version, link, link);
        if (!visit(context, &version->view, version->n_leases))
            return;
    }
}
