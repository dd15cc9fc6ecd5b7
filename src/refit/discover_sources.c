/* SPDX-License-Identifier: Apache-2.0 */
/* discover_sources.c - weir_discover(): asks a directory for its sources and has each judged. Takes
 * no part in a refit: discover.c finds what a replica installs.
 *
 * One source is in memory at a time; what stays of it are the words of its judgement. A registry
 * that is too long for the directory is made of the worker's manifest, which is asked for when the
 * wish is about tensors.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "directory/client_walk.h"
#include "directory/judge.h"
#include "refit/publish_registry.h"

#define DEFAULT_TIMEOUT_MS 60000u
#define DEFAULT_SOURCES 16384u
#define MANIFEST_TIMEOUT_MS 5000u
#define LIST_BYTES ((size_t)512 << 20) /* of all judgements */

const char *weir_endpoint_kind_name(weir_endpoint_kind kind)
{
    static const char *const names[] = { "any", "weir", "nixl", "transfer_engine" };
    return (unsigned)kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "?";
}

/* What the caller has, and frees. */
typedef struct owned_list {
    weir_discovery_list list; /* the first member: the caller's pointer is the owner's */
    weir_arena arena;
    weir_judged *judged;
    weir_candidate *candidates;
} owned_list;

typedef struct search {
    weir_discover_wish given;
    weir_judge_wish wish;
    weir_deadline deadline;
    weir_security_kept security;
    weir_directory_client *workers; /* NULL until a manifest is asked for */
    weir_buffer manifest;
    owned_list *owned;
    size_t n;
    bool is_secured; /* the workers' client is */
} search;

/* ---- registries that are in manifests --------------------------------------------------------*/

static weir_status encode_manifest(const weir_buffer *bytes, weir_arena *arena, char **out)
{
    weir_manifest manifest;
    weir_shard *shards;
    size_t n_shards;
    weir_status status = weir_manifest_decode(bytes->data, bytes->n_bytes, arena, &manifest);
    if (status == WEIR_OK)
        status = weir_layout_decode(manifest.layout, manifest.layout_bytes, manifest.regions,
                                    manifest.n_regions, arena, &shards, &n_shards);
    if (status != WEIR_OK)
        return status;
    const weir_published published = {
        .shards = shards,
        .n_shards = n_shards,
        .in_parts = manifest.engine_mesh != NULL && manifest.engine_mesh[0] != '\0',
    };
    return weir_published_encode(&published, out);
}

static weir_status fetch_manifest(search *look, const weir_source_facts *facts)
{
    char slot[32], digest[WEIR_DIGEST_TEXT];
    weir_status status = WEIR_OK;
    unsigned left_ms = weir_deadline_left_ms(look->deadline);
    if (look->workers == NULL)
        status = weir_directory_client_open(
            look->given.directory, left_ms < MANIFEST_TIMEOUT_MS ? left_ms : MANIFEST_TIMEOUT_MS,
            &look->workers);
    if (status == WEIR_OK && look->workers != NULL && !look->is_secured)
        status = weir_directory_client_secure(look->workers, &look->security.security);
    if (status != WEIR_OK)
        return status;
    look->is_secured = true;
    snprintf(slot, sizeof(slot), "rank-%.20s", facts->rank != NULL ? facts->rank : "");
    weir_buffer *bytes = &look->manifest;
    return weir_directory_get_manifest(look->workers, facts->endpoint, NULL, facts->version_uid,
                                       slot, &bytes->data, &bytes->capacity_bytes, &bytes->n_bytes,
                                       digest);
}

/* A worker that does not answer has a fault; only memory fails the search. */
static weir_status read_manifest(search *look, weir_source_facts *facts)
{
    weir_arena arena;
    char *registry = NULL;
    weir_arena_init(&arena, LIST_BYTES);
    weir_status status = fetch_manifest(look, facts);
    if (status == WEIR_OK)
        status = encode_manifest(&look->manifest, &arena, &registry);
    if (status == WEIR_OK) {
        status = weir_source_facts_read_registry(facts, registry, strlen(registry));
    } else if (status != WEIR_ERR_NO_MEMORY) {
        facts->registry_fault =
            weir_arena_format(&facts->arena, "its manifest: %s", weir_last_error());
        status = facts->registry_fault != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    }
    weir_string_free(registry);
    weir_arena_close(&arena);
    return status;
}

/* ---- one source ------------------------------------------------------------------------------*/

static bool asks_for_tensors(const search *look)
{
    return look->given.n_targets > 0 || look->wish.required != NULL;
}

static weir_status take_room(search *look, const weir_walked_source *source)
{
    owned_list *owned = look->owned;
    if (owned->judged != NULL)
        return WEIR_OK;
    int64_t now_ms = (int64_t)weir_unix_ms();
    look->wish.now_ms = source->newest_ms > now_ms ? source->newest_ms : now_ms;
    owned->judged = weir_arena_zeroed(&owned->arena, source->n_sources, sizeof(*owned->judged));
    owned->candidates =
        weir_arena_zeroed(&owned->arena, source->n_sources, sizeof(*owned->candidates));
    return owned->judged != NULL && owned->candidates != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status visit(void *context, const weir_walked_source *source)
{
    search *look = context;
    weir_source_facts facts;
    weir_status status = take_room(look, source);
    if (status != WEIR_OK)
        return status;
    const weir_listed_source listed = { source->source_id,
                                        source->worker_id,
                                        source->model,
                                        source->updated_at_ms,
                                        source->worker != NULL ? (int)source->worker->status : 0,
                                        source->why_not };
    status = weir_source_facts_open(source->identity, source->worker, &facts);
    if (status == WEIR_OK && facts.in_manifest && asks_for_tensors(look) && !facts.has_registry)
        status = read_manifest(look, &facts);
    if (status == WEIR_OK)
        status = weir_judge_source(&look->wish, &listed, &facts, &look->owned->arena,
                                   &look->owned->judged[look->n]);
    weir_source_facts_close(&facts);
    look->n += status == WEIR_OK;
    return status;
}

/* ---- all of them -----------------------------------------------------------------------------*/

static weir_status finish(search *look)
{
    owned_list *owned = look->owned;
    weir_status status =
        weir_judge_settle(owned->judged, look->n, &owned->arena, &owned->list.n_taken);
    for (size_t i = 0; i < look->n; i++)
        owned->candidates[i] = owned->judged[i].candidate;
    owned->list.candidates = owned->candidates;
    owned->list.n_candidates = look->n;
    return status;
}

static weir_status look_at_all(search *look)
{
    weir_directory_client *client;
    const weir_discover_wish *given = &look->given;
    unsigned timeout_ms = given->timeout_ms != 0 ? given->timeout_ms : DEFAULT_TIMEOUT_MS;
    look->deadline = weir_deadline_in(timeout_ms);
    weir_status status = weir_directory_client_open(given->directory, timeout_ms, &client);
    if (status != WEIR_OK)
        return status;
    status = weir_directory_client_secure(client, &look->security.security);
    if (status == WEIR_OK)
        status = weir_directory_walk_sources(
            client, given->model, given->max_sources != 0 ? given->max_sources : DEFAULT_SOURCES,
            look->deadline, visit, look, &look->owned->list.cut);
    weir_directory_client_close(client);
    return status == WEIR_OK ? finish(look) : status;
}

weir_status weir_discover(const weir_discover_wish *given, weir_discovery_list **out)
{
    search look = { .n = 0 };
    weir_status status =
        weir_options_read(given, "weir_discover_wish", &look.given, sizeof(look.given));
    if (status != WEIR_OK)
        return status;
    if (look.given.directory == NULL)
        return weir_fail(WEIR_ERR_INVALID, "discover: directory is required");
    status = weir_judge_wish_open(&look.given, &look.wish);
    if (status != WEIR_OK)
        return status;
    status = weir_security_resolve(&look.given.security, &look.security);
    look.owned = weir_alloc_zeroed(1, sizeof(*look.owned));
    if (look.owned != NULL) {
        weir_arena_init(&look.owned->arena, LIST_BYTES);
        if (status == WEIR_OK)
            status = look_at_all(&look);
    } else {
        status = WEIR_ERR_NO_MEMORY;
    }
    weir_directory_client_close(look.workers);
    weir_buffer_free(&look.manifest);
    weir_security_free(&look.security);
    weir_judge_wish_close(&look.wish);
    if (status != WEIR_OK) {
        weir_discovery_list_free(look.owned != NULL ? &look.owned->list : NULL);
        return status;
    }
    *out = &look.owned->list;
    return WEIR_OK;
}

void weir_discovery_list_free(weir_discovery_list *list)
{
    owned_list *owned = (owned_list *)list;
    if (owned == NULL)
        return;
    weir_arena_close(&owned->arena);
    weir_free(owned);
}
