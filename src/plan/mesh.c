/* SPDX-License-Identifier: Apache-2.0 */
/* mesh.c - meshes as text, and how many ranks they have. What ranks hold stands in holding.c and
 * slice.c.
 */
#include "weir/mesh.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "plan/fleet.h"

typedef struct mesh_key {
    const char *name;
    uint32_t *value;
    uint32_t least, most;
    bool counts; /* among the factors of the number of ranks */
    bool seen;
} mesh_key;

static weir_status read_number(const char *what, mesh_key *key, const char *token, size_t length)
{
    const char *digits = token + strlen(key->name) + 1;
    uint64_t number = 0;
    size_t n = length - strlen(key->name) - 1;
    for (size_t i = 0; i < n && number <= key->most; i++) {
        if (digits[i] < '0' || digits[i] > '9')
            n = 0;
        else
            number = number * 10 + (uint64_t)(digits[i] - '0');
    }
    if (n == 0 || number < key->least || number > key->most)
        return weir_fail(WEIR_ERR_INVALID, "%s mesh: '%.*s': expected a number from %u to %u", what,
                         (int)length, token, key->least, key->most);
    if (key->seen)
        return weir_fail(WEIR_ERR_INVALID, "%s mesh: '%.*s': %s is given twice", what, (int)length,
                         token, key->name);
    key->seen = true;
    *key->value = (uint32_t)number;
    return WEIR_OK;
}

static weir_status read_token(const char *what, mesh_key *keys, size_t n_keys, const char *token,
                              size_t length)
{
    char known[128] = "";
    for (size_t k = 0; k < n_keys; k++) {
        size_t n = strlen(keys[k].name);
        if (length > n && strncmp(token, keys[k].name, n) == 0 && token[n] == '=')
            return read_number(what, &keys[k], token, length);
        strncat(known, k > 0 ? ", " : "", sizeof(known) - strlen(known) - 1);
        strncat(known, keys[k].name, sizeof(known) - strlen(known) - 1);
    }
    return weir_fail(WEIR_ERR_INVALID, "%s mesh: '%.*s': expected KEY=NUMBER with one of %s", what,
                     (int)(length < 64 ? length : 64), token, known);
}

static weir_status read_mesh(const char *what, const char *text, mesh_key *keys, size_t n_keys)
{
    if (text == NULL)
        return weir_fail(WEIR_ERR_INVALID, "%s mesh: no text", what);
    uint64_t n_ranks = 1;
    while (*text != '\0') {
        size_t length = strcspn(text, ",");
        weir_status status = read_token(what, keys, n_keys, text, length);
        if (status != WEIR_OK)
            return status;
        text += length;
        if (*text == ',' && *++text == '\0')
            return weir_fail(WEIR_ERR_INVALID, "%s mesh: nothing stands behind the last ','", what);
    }
    for (size_t k = 0; k < n_keys; k++) {
        if (keys[k].counts && n_ranks <= WEIR_MESH_MAX_RANKS)
            n_ranks *= *keys[k].value > 0 ? *keys[k].value : 1;
    }
    if (n_ranks > WEIR_MESH_MAX_RANKS)
        return weir_fail(WEIR_ERR_INVALID, "%s mesh: more than %u %s", what, WEIR_MESH_MAX_RANKS,
                         strcmp(what, "replica") == 0 ? "workers" : "ranks");
    return WEIR_OK;
}

weir_status weir_trainer_mesh_parse(const char *text, weir_trainer_mesh *out)
{
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 1, .ep = 1, .tp = 1 };
    mesh_key keys[] = {
        { "fsdp", &mesh.fsdp, 1, WEIR_MESH_MAX_RANKS, true, false },
        { "tp", &mesh.tp, 1, WEIR_MESH_MAX_RANKS, true, false },
        { "ep", &mesh.ep, 1, WEIR_MESH_MAX_RANKS, true, false },
        { "pp", &mesh.pp, 1, WEIR_MESH_MAX_RANKS, true, false },
        { "hsdp", &mesh.hsdp, 1, WEIR_MESH_MAX_RANKS, true, false },
        { "sender", &mesh.sender, 0, WEIR_MESH_MAX_RANKS, false, false },
        { "dense_whole", &mesh.dense_whole, 0, 1, false, false },
    };
    weir_status status = read_mesh("trainer", text, keys, sizeof(keys) / sizeof(keys[0]));
    if (status != WEIR_OK)
        return status;
    if (mesh.sender >= mesh.hsdp)
        return weir_fail(WEIR_ERR_INVALID, "trainer mesh: 'sender=%u': hsdp=%u has no such group",
                         mesh.sender, mesh.hsdp);
    *out = mesh;
    return WEIR_OK;
}

weir_status weir_replica_mesh_parse(const char *text, weir_replica_mesh *out)
{
    weir_replica_mesh mesh = { 1, 1, 1, 1, 1, 0, NULL, NULL };
    /* ep says how the dp * tp workers are grouped: it adds none. */
    mesh_key keys[] = { { "tp", &mesh.tp, 1, WEIR_MESH_MAX_RANKS, true, false },
                        { "ep", &mesh.ep, 1, WEIR_MESH_MAX_RANKS, false, false },
                        { "dp", &mesh.dp, 1, WEIR_MESH_MAX_RANKS, true, false },
                        { "pp", &mesh.pp, 1, WEIR_MESH_MAX_RANKS, true, false },
                        { "replicas", &mesh.replicas, 1, WEIR_MESH_MAX_RANKS, true, false },
                        { "pad", &mesh.vocabulary_pad, 1, WEIR_MESH_MAX_RANKS, false, false } };
    weir_status status = read_mesh("replica", text, keys, sizeof(keys) / sizeof(keys[0]));
    if (status != WEIR_OK)
        return status;
    if (mesh.dp * mesh.tp % mesh.ep != 0)
        return weir_fail(WEIR_ERR_INVALID, "replica mesh: 'ep=%u' does not divide dp*tp = %u",
                         mesh.ep, mesh.dp * mesh.tp);
    *out = mesh;
    return WEIR_OK;
}

static uint32_t at_least_one(uint32_t n)
{
    return n > 0 ? n : 1;
}

uint32_t weir_trainer_mesh_ranks(const weir_trainer_mesh *mesh)
{
    return at_least_one(mesh->pp) * at_least_one(mesh->hsdp) * at_least_one(mesh->fsdp) *
           at_least_one(mesh->ep) * at_least_one(mesh->tp);
}

uint32_t weir_replica_mesh_workers(const weir_replica_mesh *mesh)
{
    return at_least_one(mesh->tp) * at_least_one(mesh->dp) * at_least_one(mesh->pp) *
           at_least_one(mesh->replicas);
}

/* ---- one replica -----------------------------------------------------------------------------*/

weir_mesh_place weir_replica_mesh_place(const weir_replica_mesh *mesh, uint32_t worker)
{
    uint32_t tp = at_least_one(mesh->tp), pp = at_least_one(mesh->pp);
    return (weir_mesh_place){ .stage = worker / tp % pp,
                              .d = worker / tp / pp % at_least_one(mesh->dp),
                              .t = worker % tp };
}

/* Of the ids and of where each rank's begin. */
static weir_digest digest_experts(const weir_replica_mesh *mesh)
{
    const uint32_t *first = mesh->expert_first;
    uint32_t ep = at_least_one(mesh->ep);
    weir_digest parts[2] = { { 0, 0 }, { 0, 0 } }, whole = { 0, 0 };
    weir_digest_add(&parts[0], first, 1, (ep + (size_t)1) * sizeof(*first));
    weir_digest_add(&parts[1], mesh->expert_ids, 1, first[ep] * sizeof(mesh->expert_ids[0]));
    weir_digest_add(&whole, parts, 1, sizeof(parts));
    return whole;
}

const char *weir_replica_mesh_text(const weir_replica_mesh *mesh, char buffer[WEIR_MESH_TEXT])
{
    char experts[33] = "contiguous";
    if (!weir_experts_are_contiguous(mesh)) {
        weir_digest digest = digest_experts(mesh);
        snprintf(experts, sizeof(experts), "%016" PRIx64 "%016" PRIx64, digest.product, digest.sum);
    }
    snprintf(buffer, WEIR_MESH_TEXT, "tp=%u,ep=%u,dp=%u,pp=%u,pad=%u,experts=%s",
             at_least_one(mesh->tp), at_least_one(mesh->ep), at_least_one(mesh->dp),
             at_least_one(mesh->pp), mesh->vocabulary_pad > 0 ? mesh->vocabulary_pad : 64, experts);
    return buffer;
}
