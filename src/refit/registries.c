/* SPDX-License-Identifier: Apache-2.0 */
/* registries.c - heads and texts, handed out and fetched.
 *
 * Texts are had by their digest, so that a text that changes meanwhile is not there rather than
 * another one. They are kept only while a plan is made of them; the digests stay.
 */
#include "refit/registries.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/json_text.h"
#include "refit/ranks.h"

#define HEAD_UID "registry"
#define TEXT_UID "registry-%.32s"
#define UID_BYTES 48
#define FORMAT 1
#define HEAD_BYTES 512
#define MAX_HEAD_BYTES ((size_t)1 << 16) /* of another rank's, which may say more */
/* What one answer of a manifest service can carry. */
#define MAX_TEXT_BYTES ((size_t)60 << 20)

/* What another rank says. */
typedef struct registry_head {
    char digest[WEIR_SHA256_HEX]; /* of its text; "": it has taken it back */
    char all[WEIR_SHA256_HEX];    /* of the texts that it goes by; "": it has not heard of all */
    char before[WEIR_SHA256_HEX]; /* that the exchange before ended with; "": there was none */
} registry_head;

typedef struct rank_registry {
    weir_buffer text;
    char digest[WEIR_SHA256_HEX]; /* "": its text is not here */
    char worker_id[WEIR_NAME_BYTES];
    char all[WEIR_SHA256_HEX]; /* as its head said last */
} rank_registry;

struct weir_registries {
    weir_trainer *trainer;
    rank_registry *ranks; /* this one among them: its text is handed out */
    weir_known_rank *others;
    size_t n_others;
    weir_buffer head_read;
    bool agreed; /* the last exchange ended well */
    char all[WEIR_SHA256_HEX], before[WEIR_SHA256_HEX];
    char head[HEAD_BYTES]; /* the head and own text: changed under the trainer's lock */
    size_t head_bytes;
    char head_digest[WEIR_SHA256_HEX];
    char uid[UID_BYTES];
};

/* ---- open and close --------------------------------------------------------------------------*/

weir_status weir_registries_open(weir_trainer *trainer, weir_registries **out)
{
    weir_registries *registries = weir_alloc_zeroed(1, sizeof(*registries));
    if (registries == NULL)
        return WEIR_ERR_NO_MEMORY;
    registries->trainer = trainer;
    registries->ranks = weir_alloc_zeroed(trainer->n_ranks, sizeof(*registries->ranks));
    registries->others = weir_alloc_zeroed(trainer->n_ranks, sizeof(*registries->others));
    if (registries->ranks == NULL || registries->others == NULL) {
        weir_registries_close(registries);
        return WEIR_ERR_NO_MEMORY;
    }
    for (uint32_t rank = 0; rank < trainer->n_ranks; rank++) {
        if (rank != trainer->rank)
            registries->others[registries->n_others++].rank = rank;
    }
    *out = registries;
    return WEIR_OK;
}

void weir_registries_close(weir_registries *registries)
{
    if (registries == NULL)
        return;
    for (uint32_t rank = 0; registries->ranks != NULL && rank < registries->trainer->n_ranks;
         rank++)
        weir_buffer_free(&registries->ranks[rank].text);
    weir_buffer_free(&registries->head_read);
    weir_free(registries->ranks);
    weir_free(registries->others);
    weir_free(registries);
}

/* ---- handing out -----------------------------------------------------------------------------*/

/* Under the trainer's lock. */
static weir_status write_head(weir_registries *registries)
{
    weir_json_text json;
    const weir_trainer *trainer = registries->trainer;
    const rank_registry *own = &registries->ranks[trainer->rank];
    weir_json_begin(&json, registries->head, sizeof(registries->head));
    weir_json_open(&json, NULL);
    weir_json_number(&json, "format", FORMAT);
    weir_json_number(&json, "rank", trainer->rank);
    weir_json_number(&json, "n_ranks", trainer->n_ranks);
    weir_json_string(&json, "registry", own->digest);
    weir_json_string(&json, "all", registries->all);
    weir_json_string(&json, "before", registries->before);
    weir_json_close(&json);
    if (!weir_json_end(&json))
        return weir_fail(WEIR_ERR_INTERNAL, "the head of a registry takes more than %d bytes",
                         HEAD_BYTES);
    registries->head_bytes = strlen(registries->head);
    return weir_sha256_hex(registries->head, registries->head_bytes, registries->head_digest);
}

static weir_status set_all(weir_registries *registries, const char *all)
{
    pthread_mutex_lock(&registries->trainer->lock);
    snprintf(registries->all, sizeof(registries->all), "%s", all);
    weir_status status = write_head(registries);
    pthread_mutex_unlock(&registries->trainer->lock);
    return status;
}

static weir_status hand_out(weir_registries *registries, const char *text, size_t n_bytes)
{
    rank_registry *own = &registries->ranks[registries->trainer->rank];
    pthread_mutex_lock(&registries->trainer->lock);
    registries->uid[0] = '\0';
    registries->head_bytes = 0;
    weir_status status = weir_buffer_reserve(&own->text, n_bytes);
    if (status == WEIR_OK) {
        if (n_bytes > 0)
            memcpy(own->text.data, text, n_bytes);
        own->text.n_bytes = n_bytes;
        status = weir_sha256_hex(text, n_bytes, own->digest);
    }
    snprintf(registries->before, sizeof(registries->before), "%s",
             registries->agreed ? registries->all : "");
    registries->agreed = false;
    registries->all[0] = '\0';
    if (status == WEIR_OK)
        status = write_head(registries);
    if (status == WEIR_OK)
        snprintf(registries->uid, sizeof(registries->uid), TEXT_UID, own->digest);
    pthread_mutex_unlock(&registries->trainer->lock);
    return status;
}

void weir_registries_withdraw(weir_registries *registries)
{
    rank_registry *own = &registries->ranks[registries->trainer->rank];
    if (!registries->agreed)
        return;
    weir_error_line cause;
    weir_error_save(&cause);
    pthread_mutex_lock(&registries->trainer->lock);
    memcpy(registries->before, registries->all, sizeof(registries->before));
    registries->agreed = false;
    registries->all[0] = own->digest[0] = registries->uid[0] = '\0';
    if (write_head(registries) != WEIR_OK)
        registries->head_bytes = 0;
    pthread_mutex_unlock(&registries->trainer->lock);
    weir_error_restore(&cause);
}

bool weir_registries_manifest(const weir_registries *registries, const char *uid,
                              const void **out_bytes, size_t *out_n_bytes, const char **out_digest)
{
    const rank_registry *own = &registries->ranks[registries->trainer->rank];
    if (registries->head_bytes == 0)
        return false;
    if (strcmp(uid, HEAD_UID) == 0) {
        *out_bytes = registries->head;
        *out_n_bytes = registries->head_bytes;
        *out_digest = registries->head_digest;
        return true;
    }
    if (registries->uid[0] == '\0' || strcmp(uid, registries->uid) != 0)
        return false;
    *out_bytes = own->text.data;
    *out_n_bytes = own->text.n_bytes;
    *out_digest = own->digest;
    return true;
}

/* ---- asking one rank -------------------------------------------------------------------------*/

static bool is_digest(const char *text)
{
    return strlen(text) == WEIR_SHA256_HEX - 1 &&
           strspn(text, "0123456789abcdef") == WEIR_SHA256_HEX - 1;
}

static bool is_digest_or_none(const char *text)
{
    return text[0] == '\0' || is_digest(text);
}

static weir_status read_head(const weir_registries *registries, const weir_known_rank *known,
                             const json_t *root, registry_head *out)
{
    json_int_t format = 0, rank = -1, n_ranks = -1;
    const char *digest = "", *all = "", *before = "";
    const weir_trainer *trainer = registries->trainer;
    if (json_unpack((json_t *)root, "{s:I,s:I,s:I,s:s,s:s,s:s}", "format", &format, "rank", &rank,
                    "n_ranks", &n_ranks, "registry", &digest, "all", &all, "before",
                    &before) != 0 ||
        !is_digest_or_none(digest) || !is_digest_or_none(all) || !is_digest_or_none(before))
        return weir_fail(WEIR_ERR_CORRUPT, "%s: the head of its registry does not decode",
                         known->who);
    if (format != FORMAT)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: its registry is of format %lld, not %d",
                         known->who, (long long)format, FORMAT);
    if (rank != (json_int_t)known->rank || n_ranks != (json_int_t)trainer->n_ranks)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s says that it is trainer rank %lld of %lld, not %u of %u", known->who,
                         (long long)rank, (long long)n_ranks, known->rank, trainer->n_ranks);
    snprintf(out->digest, sizeof(out->digest), "%s", digest);
    snprintf(out->all, sizeof(out->all), "%s", all);
    snprintf(out->before, sizeof(out->before), "%s", before);
    return WEIR_OK;
}

static weir_status fetch_head(weir_registries *registries, const weir_known_rank *known,
                              registry_head *out)
{
    char given[WEIR_DIGEST_TEXT], found[WEIR_SHA256_HEX];
    weir_buffer *bytes = &registries->head_read;
    weir_status status = weir_directory_get_manifest(
        registries->trainer->worker.client, known->endpoint, known->who, HEAD_UID, known->slot,
        &bytes->data, &bytes->capacity_bytes, &bytes->n_bytes, given);
    if (status != WEIR_OK)
        return status;
    status = weir_sha256_hex(bytes->data, bytes->n_bytes, found);
    if (status == WEIR_OK && strcmp(found, given) != 0)
        status = weir_fail(WEIR_ERR_CORRUPT, "%s: the head of its registry has digest %s, not %s",
                           known->who, found, given);
    if (status != WEIR_OK)
        return status;
    json_t *root = bytes->n_bytes <= MAX_HEAD_BYTES
                       ? json_loadb((const char *)bytes->data, bytes->n_bytes, 0, NULL)
                       : NULL;
    status = read_head(registries, known, root, out);
    json_decref(root);
    return status;
}

static weir_status fetch_text(weir_registries *registries, const weir_known_rank *known,
                              const char *digest)
{
    char uid[UID_BYTES], given[WEIR_DIGEST_TEXT], found[WEIR_SHA256_HEX];
    rank_registry *of = &registries->ranks[known->rank];
    of->digest[0] = '\0';
    snprintf(uid, sizeof(uid), TEXT_UID, digest);
    weir_status status = weir_directory_get_manifest(
        registries->trainer->worker.client, known->endpoint, known->who, uid, known->slot,
        &of->text.data, &of->text.capacity_bytes, &of->text.n_bytes, given);
    if (status != WEIR_OK)
        return status;
    status = weir_sha256_hex(of->text.data, of->text.n_bytes, found);
    if (status == WEIR_OK && strcmp(found, digest) != 0)
        status = weir_fail(WEIR_ERR_CORRUPT, "%s: its registry has digest %s, its head says %s",
                           known->who, found, digest);
    if (status == WEIR_OK)
        memcpy(of->digest, digest, sizeof(of->digest));
    return status;
}

/* ---- all of them -----------------------------------------------------------------------------*/

/* The digest of all texts, once they are here. Whoever was asked before must go by them too. */
static weir_status go_by_all(weir_registries *registries)
{
    char all[WEIR_SHA256_HEX];
    uint32_t n_ranks = registries->trainer->n_ranks;
    char *digests = weir_alloc((size_t)n_ranks * WEIR_SHA256_HEX);
    if (digests == NULL)
        return WEIR_ERR_NO_MEMORY;
    bool complete = true;
    for (uint32_t rank = 0; rank < n_ranks && complete; rank++) {
        complete = registries->ranks[rank].digest[0] != '\0';
        memcpy(digests + (size_t)rank * WEIR_SHA256_HEX, registries->ranks[rank].digest,
               WEIR_SHA256_HEX);
    }
    weir_status status = WEIR_OK;
    if (complete)
        status = weir_sha256_hex(digests, (size_t)n_ranks * WEIR_SHA256_HEX, all);
    weir_free(digests);
    for (size_t i = 0; i < registries->n_others; i++)
        registries->others[i].done = false;
    if (status != WEIR_OK)
        return status;
    return set_all(registries, complete ? all : "");
}

/* The last that a rank said was that it waits for the others, its text among theirs, or that it
 * goes by the same texts: gone now, it has ended the exchange, failed or was stopped, which is no
 * reason for others not to say what they know. */
static bool said_all_it_had_to(const weir_registries *registries, const weir_known_rank *known)
{
    const rank_registry *of = &registries->ranks[known->rank];
    return registries->all[0] != '\0' && strcmp(of->worker_id, known->worker_id) == 0 &&
           (of->all[0] == '\0' || strcmp(of->all, registries->all) == 0);
}

static weir_status take_text(weir_registries *registries, const weir_known_rank *known,
                             const registry_head *head)
{
    rank_registry *of = &registries->ranks[known->rank];
    if (head->digest[0] != '\0' && strcmp(of->digest, head->digest) == 0)
        return WEIR_OK;
    of->digest[0] = '\0';
    weir_status status =
        head->digest[0] != '\0' ? fetch_text(registries, known, head->digest) : WEIR_ERR_NOT_FOUND;
    if (status == WEIR_OK || registries->all[0] != '\0') {
        weir_status changed = go_by_all(registries);
        status = status == WEIR_OK ? changed : status;
    }
    return status;
}

/* What this rank has of another that goes by other texts, or none. */
static weir_status explain(weir_known_rank *known, const registry_head *head)
{
    known->waits = head->all[0] == '\0';
    snprintf(known->found, sizeof(known->found), "%s",
             head->all[0] == '\0'
                 ? "it has not heard of all ranks yet"
                 : "it goes by other layouts than are registered now: a layout changes on all "
                   "ranks or on none");
    return WEIR_IN_PROGRESS;
}

/* A rank that has ended this exchange may have begun the next one. */
static bool goes_by(const weir_registries *registries, const registry_head *head)
{
    return registries->all[0] != '\0' &&
           (strcmp(registries->all, head->all) == 0 || strcmp(registries->all, head->before) == 0);
}

static weir_status ask(void *context, size_t i)
{
    weir_registries *registries = context;
    weir_known_rank *known = &registries->others[i];
    rank_registry *of = &registries->ranks[known->rank];
    registry_head head;
    weir_status status = fetch_head(registries, known, &head);
    bool gone = status == WEIR_ERR_PEER_LOST || status == WEIR_ERR_TIMED_OUT;
    known->done = gone && said_all_it_had_to(registries, known);
    if (known->done)
        return WEIR_OK;
    known->done = status == WEIR_OK && goes_by(registries, &head);
    if (known->done)
        return WEIR_OK;
    if (status == WEIR_OK)
        status = take_text(registries, known, &head);
    if (status == WEIR_ERR_NOT_FOUND) {
        snprintf(known->found, sizeof(known->found), "it has announced itself but not registered");
        return WEIR_IN_PROGRESS;
    }
    if (status != WEIR_OK)
        return status;
    memcpy(of->worker_id, known->worker_id, sizeof(of->worker_id));
    memcpy(of->all, head.all, sizeof(of->all));
    known->done = goes_by(registries, &head);
    return known->done ? WEIR_OK : explain(known, &head);
}

weir_status weir_registries_exchange(weir_registries *registries, const char *text, size_t n_bytes)
{
    weir_trainer *trainer = registries->trainer;
    if (n_bytes > MAX_TEXT_BYTES)
        return weir_fail(
            WEIR_ERR_UNSUPPORTED,
            "trainer rank %u: what it holds takes %zu bytes to say, at most %zu travel",
            trainer->rank, n_bytes, MAX_TEXT_BYTES);
    weir_registries_forget(registries);
    weir_status status = hand_out(registries, text, n_bytes);
    if (status == WEIR_OK)
        status = go_by_all(registries);
    if (status == WEIR_OK)
        status = weir_ranks_announce(trainer);
    weir_rank_search search = { .trainer = trainer,
                                .ranks = registries->others,
                                .n_ranks = registries->n_others,
                                .wanted = "what ranks hold",
                                .ask = ask,
                                .context = registries };
    if (status == WEIR_OK)
        status = weir_ranks_search(&search);
    registries->agreed = status == WEIR_OK;
    return status;
}

weir_registry_text weir_registries_of(const weir_registries *registries, uint32_t rank)
{
    const rank_registry *of = &registries->ranks[rank];
    const char *worker = registries->trainer->worker.id;
    for (size_t i = 0; i < registries->n_others; i++) {
        if (registries->others[i].rank == rank)
            worker = registries->others[i].worker_id;
    }
    return (weir_registry_text){ (const char *)of->text.data, of->text.n_bytes, worker };
}

void weir_registries_forget(weir_registries *registries)
{
    for (uint32_t rank = 0; rank < registries->trainer->n_ranks; rank++) {
        if (rank == registries->trainer->rank)
            continue;
        weir_buffer_free(&registries->ranks[rank].text);
        registries->ranks[rank] = (rank_registry){ 0 };
    }
}
