/* SPDX-License-Identifier: Apache-2.0 */
/* attempts.c - what trainer ranks' entries say of attempts, and what follows from it for readers.
 */
#include "refit/attempts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define BEGINS "attempt "
#define OF " of "
#define ENDS " ends "

/* ---- the note --------------------------------------------------------------------------------*/

/* What follows the word; NULL when the text does not begin with it. */
static const char *behind(const char *text, const char *word)
{
    size_t n = strlen(word);
    return text != NULL && strncmp(text, word, n) == 0 ? text + n : NULL;
}

static const char *read_number(const char *text, unsigned *out)
{
    unsigned number = 0;
    const char *at = text;
    for (; at != NULL && *at >= '0' && *at <= '9' && at - text < 6; at++)
        number = number * 10 + (unsigned)(*at - '0');
    *out = number;
    return number > 0 ? at : NULL;
}

static const char *read_content(const char *text, char content[WEIR_CONTENT_BYTES])
{
    size_t n = WEIR_CONTENT_BYTES - 1;
    if (text == NULL || strspn(text, "0123456789abcdef") != n)
        return NULL;
    memcpy(content, text, n);
    content[n] = '\0';
    return text + n;
}

static bool read_end(const char *text, weir_attempt *out)
{
    const char *space = text != NULL ? strchr(text, ' ') : NULL;
    size_t n = space != NULL ? (size_t)(space - text) : 0;
    if (n == 0 || n >= sizeof(out->ended_uid))
        return false;
    memcpy(out->ended_uid, text, n);
    out->ended_uid[n] = '\0';
    snprintf(out->reason, sizeof(out->reason), "%s", space + 1);
    return true;
}

bool weir_attempt_read(const char *note, weir_attempt *out)
{
    weir_attempt said = { .number = 1 };
    *out = said;
    const char *at = read_number(behind(note, BEGINS), &said.number);
    at = read_content(behind(at, OF), said.content);
    if (at == NULL || (*at != '\0' && !read_end(behind(at, ENDS), &said)))
        return false;
    *out = said;
    return true;
}

void weir_attempt_write(const weir_attempt *attempt, char *note, size_t note_bytes)
{
    bool ends = attempt->ended_uid[0] != '\0';
    snprintf(note, note_bytes, BEGINS "%u" OF "%s%s%s%s%s", attempt->number, attempt->content,
             ends ? ENDS : "", attempt->ended_uid, ends ? " " : "", ends ? attempt->reason : "");
}

/* ---- entries ---------------------------------------------------------------------------------*/

weir_status weir_rank_entries_list(weir_worker *worker, weir_source_status status,
                                   weir_source_ref *refs, size_t n_max, weir_rank_entries *out)
{
    const weir_source_wish wish = { worker->model, worker->run, "trainer", status, 0 };
    *out = (weir_rank_entries){ .worker = worker, .refs = refs };
    return weir_directory_list_role(worker->client, &wish, refs, n_max, &out->n);
}

weir_status weir_rank_entries_next(weir_rank_entries *entries, weir_source_record *out)
{
    const weir_worker *worker = entries->worker;
    while (entries->next < entries->n) {
        const weir_source_ref *ref = &entries->refs[entries->next++];
        weir_status status =
            weir_directory_get_source(worker->client, ref->source_id, ref->worker_id, out);
        if (status == WEIR_ERR_NOT_FOUND)
            continue; /* gone since it was listed */
        if (status != WEIR_OK)
            return status;
        if (strcmp(out->role, "trainer") == 0 && strcmp(out->run, worker->run) == 0)
            return WEIR_OK;
    }
    return WEIR_IN_PROGRESS;
}

/* ---- attempts that are over ------------------------------------------------------------------*/

/* Whether the entry says so of what is asked for. */
static bool says_end(const weir_source_record *record, const weir_end_wish *wish,
                     weir_attempt_end *out)
{
    weir_attempt said;
    bool by_uid = wish->uid[0] != '\0';
    const char *aborted = behind(record->note, WEIR_ABORTED_NOTE);
    if (aborted != NULL && record->version_uid[0] != '\0' &&
        (by_uid ? strcmp(record->version_uid, wish->uid) == 0
                : record->version >= wish->lowest && record->version <= wish->highest)) {
        out->version = record->version;
        memcpy(out->uid, record->version_uid, sizeof(out->uid));
        snprintf(out->reason, sizeof(out->reason), "%.*s", (int)sizeof(out->reason) - 1, aborted);
        return true;
    }
    if (!by_uid || !weir_attempt_read(record->note, &said) ||
        strcmp(said.ended_uid, wish->uid) != 0)
        return false;
    out->version = 0;
    memcpy(out->uid, said.ended_uid, sizeof(out->uid));
    snprintf(out->reason, sizeof(out->reason), "%s", said.reason);
    return true;
}

weir_status weir_attempt_find_end(weir_worker *worker, const weir_end_wish *wish,
                                  weir_attempt_end *out)
{
    weir_rank_entries entries;
    weir_source_record record;
    bool found = false;
    weir_status status =
        weir_rank_entries_list(worker, WEIR_SOURCE_UNKNOWN, wish->refs, wish->n_refs, &entries);
    while (status == WEIR_OK && !(found && wish->uid[0] != '\0')) {
        weir_attempt_end one;
        status = weir_rank_entries_next(&entries, &record);
        if (status != WEIR_OK || !says_end(&record, wish, &one) ||
            (found && one.version <= out->version))
            continue;
        *out = one;
        found = true;
    }
    if (status != WEIR_OK && status != WEIR_IN_PROGRESS)
        return status;
    return found ? WEIR_OK : WEIR_IN_PROGRESS;
}

/* ---- several shards of one slot --------------------------------------------------------------*/

/* What is known of the worker of a shard. */
typedef struct word {
    bool looks;                       /* before it puts a shard beside another's */
    char content[WEIR_CONTENT_BYTES]; /* of this version; "": not known */
} word;

static weir_status hear_words(weir_rank_entries *entries, const char *uid,
                              const weir_shard_record *shards, size_t n_shards, word *words)
{
    for (;;) {
        weir_attempt said;
        weir_source_record record;
        weir_status status = weir_rank_entries_next(entries, &record);
        if (status != WEIR_OK)
            return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
        if (!weir_attempt_read(record.note, &said))
            continue;
        for (size_t i = 0; i < n_shards; i++) {
            if (strcmp(shards[i].worker_id, record.worker_id) != 0)
                continue;
            words[i].looks = true;
            if (strcmp(record.version_uid, uid) == 0)
                memcpy(words[i].content, said.content, sizeof(said.content));
        }
    }
}

/* The first who came had nobody to look at; all others must have looked. */
static weir_status check_pair(const weir_worker *worker, uint64_t version,
                              const weir_shard_record *a, const word *of_a,
                              const weir_shard_record *b, const word *of_b)
{
    bool known = of_a->content[0] != '\0' && of_b->content[0] != '\0';
    if (known && strcmp(of_a->content, of_b->content) != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "version %" PRIu64 " of %s: %s has shards of %s and of %s, which are of "
                         "other weights: it is not one version",
                         version, worker->model, a->slot, a->worker_id, b->worker_id);
    if (!of_a->looks && !of_b->looks)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "version %" PRIu64 " of %s: %s has shards of %s and of %s, and directory "
                         "%s does not say whether they are of the same weights",
                         version, worker->model, a->slot, a->worker_id, b->worker_id,
                         weir_directory_client_address(worker->client));
    return WEIR_OK;
}

weir_status weir_attempt_check_shards(weir_worker *worker, const char *uid, uint64_t version,
                                      const weir_shard_record *shards, size_t n_shards,
                                      weir_source_ref *refs, size_t n_refs)
{
    weir_rank_entries entries;
    word *words = weir_alloc_zeroed(n_shards, sizeof(*words));
    if (words == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status =
        weir_rank_entries_list(worker, WEIR_SOURCE_UNKNOWN, refs, n_refs, &entries);
    if (status == WEIR_OK)
        status = hear_words(&entries, uid, shards, n_shards, words);
    for (size_t i = 0; i < n_shards && status == WEIR_OK; i++) {
        for (size_t j = i + 1; j < n_shards && status == WEIR_OK; j++) {
            if (strcmp(shards[i].slot, shards[j].slot) == 0)
                status = check_pair(worker, version, &shards[i], &words[i], &shards[j], &words[j]);
        }
    }
    weir_free(words);
    return status;
}
