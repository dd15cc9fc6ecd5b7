/* SPDX-License-Identifier: Apache-2.0 */
/* remote.c - fetching a source's manifest and keeping what it leads to. */
#include "refit/remote.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/sha256.h"
#include "refit/round.h"

#define MANIFEST_CAP_BYTES ((size_t)1 << 30)
/* Keys that are kept though the current manifest does not use them: the trainer's other slots. */
#define SPARE_IMPORTS 8u

weir_status weir_remote_open(weir_worker *worker, const char *worker_id, const char *slot,
                             const char *who, weir_remote **out)
{
    weir_remote *remote = weir_alloc_zeroed(1, sizeof(*remote));
    if (remote == NULL)
        return WEIR_ERR_NO_MEMORY;
    remote->worker = worker;
    snprintf(remote->worker_id, sizeof(remote->worker_id), "%s", worker_id);
    snprintf(remote->slot, sizeof(remote->slot), "%s", slot);
    snprintf(remote->who, sizeof(remote->who), "%s", who);
    weir_arena_init(&remote->arena, MANIFEST_CAP_BYTES);
    weir_arena_init(&remote->layout_arena, MANIFEST_CAP_BYTES);
    *out = remote;
    return WEIR_OK;
}

void weir_remote_begin_leaving(weir_remote *remote, bool abort)
{
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++)
        weir_matched_leave(remote->casts[a], abort);
}

void weir_remote_leave_casts(weir_remote *remote, bool abort)
{
    weir_remote_begin_leaving(remote, abort);
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        weir_matched_close(remote->casts[a], abort);
        remote->casts[a] = NULL;
    }
    remote->is_casting = false;
}

void weir_remote_disconnect(weir_remote *remote)
{
    weir_remote_leave_casts(remote, remote->is_casting);
    const weir_transport_ops *ops = remote->link.ops;
    for (size_t i = 0; i < remote->n_imported; i++) {
        ops->forget(remote->imported[i].remote);
        weir_buffer_free(&remote->imported[i].key);
    }
    weir_free(remote->imported);
    remote->imported = NULL;
    remote->n_imported = 0;
    if (remote->peer != NULL)
        ops->disconnect(remote->peer);
    remote->peer = NULL;
    weir_frame_link_close(remote->push);
    remote->push = NULL;
}

void weir_remote_close(weir_remote *remote)
{
    if (remote == NULL)
        return;
    weir_remote_disconnect(remote);
    weir_buffer_free(&remote->address);
    weir_buffer_free(&remote->layout);
    weir_buffer_free(&remote->bytes);
    weir_arena_close(&remote->arena);
    weir_arena_close(&remote->layout_arena);
    weir_free(remote);
}

/* ---- manifest --------------------------------------------------------------------------------*/

static weir_status check_manifest(const weir_remote *remote, const weir_manifest_wish *wish)
{
    const weir_manifest *manifest = &remote->manifest;
    if (strcmp(manifest->model, remote->worker->model) != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "its manifest is of model %s, this replica runs %s",
                         manifest->model, remote->worker->model);
    if (strcmp(manifest->run, remote->worker->run) != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "its manifest is of run %s, this replica follows %s",
                         manifest->run, remote->worker->run);
    if (manifest->version != wish->version)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "its manifest is of version %" PRIu64 ", %" PRIu64 " was asked for",
                         manifest->version, wish->version);
    if (wish->is_whole && (manifest->push_address[0] != '\0' || manifest->n_groups > 0))
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "its manifest is of no version that lies there whole");
    if (wish->transport != NULL && strcmp(manifest->transport, wish->transport) != 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "it offers transport %s, this replica wants %s",
                         manifest->transport, wish->transport);
    return WEIR_OK;
}

static weir_status fetch_manifest(weir_remote *remote, const weir_manifest_wish *wish)
{
    char given[WEIR_DIGEST_TEXT], found[WEIR_SHA256_HEX];
    snprintf(remote->endpoint, sizeof(remote->endpoint), "%s", wish->endpoint);
    weir_status status = weir_directory_get_manifest(
        remote->worker->client, wish->endpoint, remote->who, wish->uid, remote->slot,
        &remote->bytes.data, &remote->bytes.capacity_bytes, &remote->bytes.n_bytes, given);
    if (status != WEIR_OK)
        return status;
    status = weir_sha256_hex(remote->bytes.data, remote->bytes.n_bytes, found);
    const char *expected = wish->digest != NULL ? wish->digest : given;
    if (status == WEIR_OK && strcmp(found, expected) != 0)
        status = weir_fail(WEIR_ERR_CORRUPT, "manifest digest is %s, the directory says %s", found,
                           expected);
    weir_arena_reset(&remote->arena);
    if (status == WEIR_OK)
        status = weir_manifest_decode(remote->bytes.data, remote->bytes.n_bytes, &remote->arena,
                                      &remote->manifest);
    if (status == WEIR_OK)
        status = check_manifest(remote, wish);
    if (status != WEIR_OK)
        weir_error_prefix("%s", remote->who);
    return status;
}

weir_status weir_remote_ask_again(weir_remote *remote, const char *uid)
{
    weir_buffer bytes = { 0 };
    char digest[WEIR_DIGEST_TEXT];
    weir_status status = weir_directory_get_manifest(remote->worker->client, remote->endpoint,
                                                     remote->who, uid, remote->slot, &bytes.data,
                                                     &bytes.capacity_bytes, &bytes.n_bytes, digest);
    if (status == WEIR_OK && (bytes.n_bytes != remote->bytes.n_bytes ||
                              memcmp(bytes.data, remote->bytes.data, bytes.n_bytes) != 0))
        status = weir_fail(WEIR_ERR_NOT_FOUND, "%s: %s hands out another manifest", remote->who,
                           remote->endpoint);
    weir_buffer_free(&bytes);
    return status;
}

static bool buffer_equals(const weir_buffer *buffer, const void *data, size_t n_bytes)
{
    return buffer->n_bytes == n_bytes && (n_bytes == 0 || memcmp(buffer->data, data, n_bytes) == 0);
}

static weir_status buffer_set(weir_buffer *buffer, const void *data, size_t n_bytes)
{
    weir_status status = weir_buffer_reserve(buffer, n_bytes ? n_bytes : 1);
    if (status != WEIR_OK)
        return status;
    if (n_bytes > 0) /* a rank that sends nothing has no layout */
        memcpy(buffer->data, data, n_bytes);
    buffer->n_bytes = n_bytes;
    return WEIR_OK;
}

/* Of `n_groups` groups; NULL only equals NULL. */
static bool same_numbers(const void *a, const void *b, size_t n_groups, size_t number_bytes)
{
    if (a == NULL || b == NULL || n_groups == 0)
        return n_groups == 0 || a == b;
    return memcmp(a, b, n_groups * number_bytes) == 0;
}

static bool same_groups(const weir_remote *remote)
{
    const weir_manifest *m = &remote->manifest;
    size_t n = m->n_groups;
    return remote->n_groups == n &&
           same_numbers(remote->group_ends, m->group_ends, n, sizeof(*m->group_ends)) &&
           same_numbers(remote->group_bytes, m->group_bytes, n, sizeof(*m->group_bytes)) &&
           same_numbers(remote->group_keys, m->group_keys, n, sizeof(*m->group_keys)) &&
           same_numbers(remote->group_audiences, m->group_audiences, n,
                        sizeof(*m->group_audiences));
}

bool weir_remote_layouts_equal(const weir_remote *a, const weir_remote *b)
{
    size_t n = a->n_groups;
    return a->shards != NULL && b->shards != NULL && (a->push == NULL) == (b->push == NULL) &&
           buffer_equals(&a->layout, b->layout.data, b->layout.n_bytes) &&
           strcmp(a->engine_mesh, b->engine_mesh) == 0 && n == b->n_groups &&
           same_numbers(a->group_ends, b->group_ends, n, sizeof(*a->group_ends)) &&
           same_numbers(a->group_bytes, b->group_bytes, n, sizeof(*a->group_bytes)) &&
           same_numbers(a->group_keys, b->group_keys, n, sizeof(*a->group_keys)) &&
           same_numbers(a->group_audiences, b->group_audiences, n, sizeof(*a->group_audiences));
}

/* NULL without memory. */
static void *keep_numbers(weir_remote *remote, const void *numbers, size_t number_bytes)
{
    size_t n_bytes = remote->manifest.n_groups * number_bytes;
    void *kept = weir_arena_alloc(&remote->layout_arena, n_bytes);
    if (kept != NULL && n_bytes > 0)
        memcpy(kept, numbers, n_bytes);
    return kept;
}

static weir_status copy_groups(weir_remote *remote)
{
    const weir_manifest *m = &remote->manifest;
    remote->group_bytes = NULL;
    remote->group_keys = remote->group_audiences = NULL;
    remote->group_ends = keep_numbers(remote, m->group_ends, sizeof(*m->group_ends));
    if (remote->group_ends == NULL)
        return WEIR_ERR_NO_MEMORY;
    remote->n_groups = m->n_groups;
    if (m->group_bytes == NULL)
        return WEIR_OK;
    remote->group_keys = keep_numbers(remote, m->group_keys, sizeof(*m->group_keys));
    remote->group_audiences = keep_numbers(remote, m->group_audiences, sizeof(*m->group_audiences));
    remote->group_bytes = keep_numbers(remote, m->group_bytes, sizeof(*m->group_bytes));
    return remote->group_keys != NULL && remote->group_audiences != NULL &&
                   remote->group_bytes != NULL
               ? WEIR_OK
               : WEIR_ERR_NO_MEMORY;
}

/* New layout bytes are decoded and checked; equal ones stand checked. */
static weir_status decode_layout(weir_remote *remote, const weir_mesh_place *place)
{
    weir_layout_part part;
    const weir_manifest *manifest = &remote->manifest;
    if (remote->shards != NULL &&
        buffer_equals(&remote->layout, manifest->layout, manifest->layout_bytes) &&
        strcmp(remote->engine_mesh, manifest->engine_mesh) == 0 && same_groups(remote))
        return WEIR_OK;
    remote->shards = NULL;
    remote->layout_generation++;
    snprintf(remote->engine_mesh, sizeof(remote->engine_mesh), "%s", manifest->engine_mesh);
    weir_arena_reset(&remote->layout_arena);
    remote->n_groups = 0;
    weir_status status = buffer_set(&remote->layout, manifest->layout, manifest->layout_bytes);
    if (status == WEIR_OK)
        status = copy_groups(remote);
    if (status != WEIR_OK)
        return status;
    status = weir_layout_decode_part(remote->layout.data, remote->layout.n_bytes, manifest->regions,
                                     manifest->n_regions, place, &remote->layout_arena, &part);
    if (status != WEIR_OK)
        return status;
    remote->shards = part.shards;
    remote->numbers = part.numbers;
    remote->n_shards = part.n_shards;
    remote->n_published = part.n_published;
    remote->first_metadata = part.first_metadata;
    return WEIR_OK;
}

size_t weir_remote_first_shard(const weir_remote *remote, uint32_t number)
{
    size_t low = 0, high = remote->n_shards;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (remote->numbers[middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Gives every shard this version's digest. The regions are new in every manifest, so that shards
 * lie within them is checked every time. */
static weir_status read_digests(weir_remote *remote)
{
    const weir_manifest *manifest = &remote->manifest;
    if (manifest->n_digests != remote->n_published)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest has %zu digests for %zu shards",
                         manifest->n_digests, remote->n_published);
    for (size_t i = 0; i < remote->n_shards; i++) {
        weir_shard *shard = &remote->shards[i];
        uint64_t end = shard->offset + shard->n_bytes;
        if (shard->region >= manifest->n_regions || end > manifest->regions[shard->region].n_bytes)
            return weir_fail(WEIR_ERR_CORRUPT, "%s lies outside the regions of its manifest",
                             shard->name);
        shard->digest = manifest->digests[remote->numbers[i]];
    }
    return WEIR_OK;
}

uint32_t weir_remote_group_of(const weir_remote *remote, size_t shard)
{
    uint32_t low = 0, high = (uint32_t)remote->n_groups;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (remote->group_ends[middle] <= remote->numbers[shard])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* What is broadcast of a group is caught in one piece: from the begin of the buffer that it passes
 * through, which has room for it, to the end of its last shard. */
static weir_status check_broadcast(const weir_remote *remote)
{
    const weir_manifest *manifest = &remote->manifest;
    uint64_t most_bytes = 0;
    for (size_t r = 0; r < manifest->n_regions; r++)
        if (manifest->regions[r].n_bytes > most_bytes)
            most_bytes = manifest->regions[r].n_bytes;
    for (size_t g = 0; g < remote->n_groups; g++)
        if (remote->group_bytes[g] > most_bytes)
            return weir_fail(WEIR_ERR_CORRUPT,
                             "group %zu has %" PRIu64 " bytes, the largest of its buffers %" PRIu64,
                             g, remote->group_bytes[g], most_bytes);
    for (size_t s = 0; s < remote->n_shards; s++) {
        const weir_shard *shard = &remote->shards[s];
        uint32_t group = weir_remote_group_of(remote, s);
        uint64_t n_bytes = remote->group_bytes[group];
        if (n_bytes > manifest->regions[shard->region].n_bytes)
            return weir_fail(WEIR_ERR_CORRUPT,
                             "group %u of %s has %" PRIu64 " bytes, its buffer %" PRIu64, group,
                             shard->name, n_bytes, manifest->regions[shard->region].n_bytes);
        if (shard->offset + shard->n_bytes > n_bytes)
            return weir_fail(WEIR_ERR_CORRUPT,
                             "%s ends with byte %" PRIu64 " of group %u, which has %" PRIu64,
                             shard->name, shard->offset + shard->n_bytes, group, n_bytes);
    }
    return WEIR_OK;
}

static weir_status read_layout(weir_remote *remote, const weir_mesh_place *place)
{
    weir_status status = decode_layout(remote, place);
    if (status == WEIR_OK)
        status = read_digests(remote);
    if (status == WEIR_OK && remote->group_bytes != NULL)
        status = check_broadcast(remote);
    if (status != WEIR_OK)
        weir_error_prefix("%s", remote->who);
    return status;
}

/* ---- connection ------------------------------------------------------------------------------*/

static weir_status connect_peer(weir_remote *remote)
{
    const weir_manifest *manifest = &remote->manifest;
    if (remote->peer != NULL &&
        buffer_equals(&remote->address, manifest->address, manifest->address_bytes) &&
        strcmp(remote->link.ops->name, manifest->transport) == 0)
        return WEIR_OK;
    weir_remote_disconnect(remote);
    weir_status status = weir_worker_link(remote->worker, manifest->transport, &remote->link);
    if (status == WEIR_OK)
        status = buffer_set(&remote->address, manifest->address, manifest->address_bytes);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", remote->who);
        return status;
    }
    remote->worker->counters.connections++;
    return remote->link.ops->connect(remote->link.transport, remote->address.data,
                                     remote->address.n_bytes, remote->who,
                                     remote->worker->timeout_ms, &remote->peer);
}

/* What is broadcast comes to those who stand in its groups: nothing is connected or imported. */
static weir_status open_broadcast(weir_remote *remote)
{
    const weir_manifest *manifest = &remote->manifest;
    weir_link link = { NULL, NULL };
    weir_status status = weir_worker_link(remote->worker, manifest->transport, &link);
    if (status == WEIR_OK && !(link.ops->caps & WEIR_CAP_MATCHED))
        status = weir_fail(WEIR_ERR_UNSUPPORTED,
                           "version %" PRIu64 " is broadcast over transport %s, which cannot here",
                           manifest->version, link.ops->name);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", remote->who);
        return status;
    }
    if (remote->peer != NULL || remote->push != NULL || remote->link.transport != link.transport)
        weir_remote_disconnect(remote);
    remote->link = link;
    remote->regions =
        weir_arena_zeroed(&remote->arena, manifest->n_regions, sizeof(*remote->regions));
    return remote->regions != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* ---- pushes ----------------------------------------------------------------------------------*/

void weir_remote_hear(weir_remote *remote, bool *out_news)
{
    weir_round_message message;
    weir_status status = WEIR_OK;
    *out_news = false;
    while (remote->push != NULL && status == WEIR_OK) {
        weir_arena_reset(&remote->arena);
        status = weir_round_receive(remote->push, 0, &remote->arena, &message);
        *out_news |= status == WEIR_OK && message.type == WEIR_ROUND_NEWS;
        if (status < WEIR_OK)
            weir_remote_disconnect(remote);
    }
}

static weir_status send_join(weir_remote *remote)
{
    const weir_worker *worker = remote->worker;
    weir_round_join join = { worker->id, worker->model, worker->run };
    return weir_round_send_join(remote->push, &join, &remote->arena, worker->timeout_ms);
}

/* Joins those to whom the source pushes. */
static weir_status join_push(weir_remote *remote)
{
    const char *address = remote->manifest.push_address;
    size_t n_bytes = strlen(address) + 1;
    if (remote->push != NULL && buffer_equals(&remote->address, address, n_bytes))
        return WEIR_OK;
    weir_remote_disconnect(remote);
    weir_status status = buffer_set(&remote->address, address, n_bytes);
    if (status != WEIR_OK)
        return status;
    remote->worker->counters.connections++;
    status = weir_frame_connect((const char *)remote->address.data, remote->who,
                                &remote->worker->security.security, remote->worker->timeout_ms,
                                &remote->push);
    return status == WEIR_OK ? send_join(remote) : status;
}

/* ---- regions ---------------------------------------------------------------------------------*/

static weir_imported *find_imported(weir_remote *remote, const weir_manifest_region *region)
{
    for (size_t i = 0; i < remote->n_imported; i++) {
        if (buffer_equals(&remote->imported[i].key, region->key, region->key_bytes))
            return &remote->imported[i];
    }
    return NULL;
}

/* Drops what no manifest has used for a while: files of old versions, slots of an old layout. */
static void forget_unused(weir_remote *remote, size_t n_keep)
{
    size_t kept = 0;
    for (size_t i = 0; i < remote->n_imported; i++) {
        weir_imported *imported = &remote->imported[i];
        bool recent = imported->used_at + SPARE_IMPORTS > remote->n_fetches;
        if (remote->n_imported <= n_keep || recent) {
            remote->imported[kept++] = *imported;
            continue;
        }
        remote->link.ops->forget(imported->remote);
        weir_buffer_free(&imported->key);
    }
    remote->n_imported = kept;
}

static weir_status import_region(weir_remote *remote, const weir_manifest_region *region,
                                 weir_imported **out)
{
    size_t n_bytes = (remote->n_imported + 1) * sizeof(*remote->imported);
    weir_imported *grown = weir_realloc(remote->imported, n_bytes);
    if (grown == NULL)
        return WEIR_ERR_NO_MEMORY;
    remote->imported = grown;
    weir_imported *imported = &grown[remote->n_imported];
    *imported = (weir_imported){ 0 };
    weir_status status = buffer_set(&imported->key, region->key, region->key_bytes);
    if (status == WEIR_OK)
        status = remote->link.ops->import(remote->peer, imported->key.data, imported->key.n_bytes,
                                          &imported->remote);
    if (status != WEIR_OK) {
        weir_buffer_free(&imported->key);
        return status;
    }
    remote->n_imported++;
    *out = imported;
    return WEIR_OK;
}

static weir_status import_regions(weir_remote *remote)
{
    const weir_manifest *manifest = &remote->manifest;
    remote->regions =
        weir_arena_alloc(&remote->arena, manifest->n_regions * sizeof(*remote->regions));
    if (remote->regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    remote->n_fetches++;
    for (size_t i = 0; i < manifest->n_regions; i++) {
        weir_imported *imported = find_imported(remote, &manifest->regions[i]);
        weir_status status = WEIR_OK;
        if (imported == NULL)
            status = import_region(remote, &manifest->regions[i], &imported);
        if (status != WEIR_OK)
            return status;
        imported->used_at = remote->n_fetches;
        remote->regions[i] = imported->remote;
    }
    forget_unused(remote, manifest->n_regions + SPARE_IMPORTS);
    return WEIR_OK;
}

/* So is that of a rank that has nothing to send, by a transport that only broadcasts. */
static bool is_broadcast(const weir_manifest *manifest)
{
    return manifest->group_bytes != NULL ||
           (manifest->n_digests == 0 && manifest->address_bytes == 0);
}

weir_status weir_remote_fetch(weir_remote *remote, const weir_manifest_wish *wish)
{
    bool news;
    weir_remote_hear(remote, &news);
    weir_status status = fetch_manifest(remote, wish);
    if (status == WEIR_OK)
        status = read_layout(remote, wish->place);
    if (status == WEIR_OK && remote->manifest.push_address[0] != '\0')
        return join_push(remote);
    if (status == WEIR_OK && is_broadcast(&remote->manifest))
        return open_broadcast(remote);
    if (status == WEIR_OK)
        status = connect_peer(remote);
    if (status == WEIR_OK)
        status = import_regions(remote);
    return status;
}
