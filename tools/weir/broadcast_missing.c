/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_missing.c - reads the fleet's document (docs/wire.md): workers of servers are
 * registered as server-S-dpD and eight digits, with their tp rank as rank; trainer ranks publish
 * slots called rank-R.
 *
 * Who is to blame comes first: trainer ranks without whom there is no version, then workers that
 * failed or never came. Workers that held it and were told to go back are named apart.
 */
#include "broadcast_missing.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "weir/fleet.h"

#define ASK_MS 2000u
#define MOST_CAUSE 160 /* characters of what a worker has said */

typedef struct place {
    uint32_t server, dp, tp;
} place;

/* What is looked at, and what is said of it. */
typedef struct missing {
    const weir_run_settings *settings;
    uint64_t version;
    const json_t *fleet;
    const json_t *words; /* about that version; NULL: nobody has said one */
    char *text;
    size_t n_text;
    char back[512]; /* those that went back */
} missing;

static void append(char *text, size_t n_text, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void append(char *text, size_t n_text, const char *format, ...)
{
    size_t n = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + n, n_text - n, format, arguments);
    va_end(arguments);
}

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

/* ---- records of the run ----------------------------------------------------------------------*/

static bool is_of_run(const missing *m, const json_t *record)
{
    return strcmp(text_of(record, "model"), m->settings->orchestrator.model.name) == 0 &&
           strcmp(text_of(record, "run"), m->settings->run) == 0;
}

static bool is_of_version(const missing *m, const json_t *record)
{
    const json_t *number = json_object_get(record, "version");
    return json_is_integer(number) && json_integer_value(number) >= 0 &&
           (uint64_t)json_integer_value(number) == m->version;
}

/* server-0-dp1-1f2e3d4c */
static bool is_engine(const json_t *record, const place *at)
{
    char prefix[64];
    int n = snprintf(prefix, sizeof(prefix), "server-%u-dp%u-", at->server, at->dp);
    return strncmp(text_of(record, "worker_id"), prefix, (size_t)n) == 0;
}

static bool is_worker(const json_t *record, const place *at)
{
    return is_engine(record, at) && json_integer_value(json_object_get(record, "rank")) == at->tp;
}

/* Its entry among the sources: the newest, of a server that was started again. */
static const json_t *find_source(const missing *m, const place *at)
{
    size_t i;
    const json_t *source, *found = NULL;
    json_array_foreach(json_object_get(m->fleet, "sources"), i, source)
    {
        if (is_of_run(m, source) && is_worker(source, at) &&
            (found == NULL || json_integer_value(json_object_get(source, "updated_ms")) >
                                  json_integer_value(json_object_get(found, "updated_ms"))))
            found = source;
    }
    return found;
}

/* By its own word it holds a version, but nobody has heard of it for long. */
static bool is_gone(const json_t *source)
{
    return strcmp(text_of(source, "status"), "GONE") == 0;
}

static const json_t *find_words(const missing *m)
{
    size_t i;
    const json_t *refit;
    json_array_foreach(json_object_get(m->fleet, "refits"), i, refit)
    {
        if (is_of_run(m, refit) && is_of_version(m, refit))
            return json_object_get(refit, "words");
    }
    return NULL;
}

/* The last that it has said about the version. */
static const json_t *find_word(const missing *m, const place *at)
{
    size_t i;
    const json_t *word, *found = NULL;
    json_array_foreach(m->words, i, word)
    {
        if (is_worker(word, at) &&
            (found == NULL || json_integer_value(json_object_get(word, "at_ms")) >=
                                  json_integer_value(json_object_get(found, "at_ms"))))
            found = word;
    }
    return found;
}

/* Registered, and holds nothing: workers of an engine are told apart by their entries alone. */
static bool has_joined(const missing *m, const place *at)
{
    size_t i;
    uint32_t n = 0;
    const json_t *worker;
    json_array_foreach(json_object_get(m->fleet, "workers"), i, worker)
    {
        n += is_engine(worker, at) && !json_is_true(json_object_get(worker, "superseded"));
    }
    return n >= m->settings->inference.tp;
}

/* ---- trainer ranks ---------------------------------------------------------------------------*/

/* "trainer rank 1 has not published it, rank 3 is gone" of a version that lacks them. */
static bool name_trainers(const missing *m)
{
    size_t i, k, n_before = strlen(m->text);
    const json_t *version, *slot;
    json_array_foreach(json_object_get(m->fleet, "versions"), i, version)
    {
        bool was_ready = strcmp(text_of(version, "state"), "READY") == 0;
        if (!is_of_run(m, version) || !is_of_version(m, version) ||
            json_is_true(json_object_get(version, "taken_back")) ||
            !(was_ready || strcmp(text_of(version, "state"), "STAGING") == 0))
            continue;
        json_array_foreach(json_object_get(version, "missing"), k, slot)
        {
            const char *name = json_string_value(slot);
            if (name == NULL || strncmp(name, "rank-", 5) != 0)
                continue;
            bool is_first = strlen(m->text) == n_before;
            append(m->text, m->n_text, "%srank %.10s %s", is_first ? "trainer " : ", ", name + 5,
                   was_ready ? "is gone" : "has not published it");
        }
    }
    return strlen(m->text) > n_before;
}

/* ---- inference workers -----------------------------------------------------------------------*/

static void name_worker(char *text, size_t n_text, uint32_t rank, const place *at, const char *what)
{
    bool is_first = text[0] == '\0';
    append(text, n_text, "%s%srank %u (server %u, dp %u, tp %u)%s", is_first ? "" : ", ",
           is_first ? "inference " : "", rank, at->server, at->dp, at->tp, what);
}

/* Why it does not hold it, as far as it has said so, and what it holds instead. */
static void describe(const missing *m, const place *at, const json_t *source, const json_t *word,
                     char *what, size_t n_what)
{
    json_int_t held = json_integer_value(json_object_get(source, "version"));
    bool is_there = source != NULL && !is_gone(source);
    what[0] = '\0';
    if (word != NULL)
        append(what, n_what, " failed: %.*s,", MOST_CAUSE, text_of(word, "text"));
    if (source != NULL && held > 0)
        append(what, n_what, " %s version %lld", is_there ? "holds" : "is gone, it held",
               (long long)held);
    else if (source != NULL || word != NULL || has_joined(m, at))
        append(what, n_what, " has installed nothing");
    else
        append(what, n_what, " has not joined");
}

/* It has held the version, and holds it no more: because of others. */
static bool went_back(const json_t *word)
{
    const char *status = text_of(word, "status");
    return strcmp(status, "OK") == 0 || (strcmp(status, "ERR_ABORTED") == 0 &&
                                         strncmp(text_of(word, "text"), "it went back", 12) == 0);
}

static bool is_missing(missing *m, const place *at)
{
    const weir_run_group group = { (uint32_t)m->settings->orchestrator.servers.n_items,
                                   m->settings->inference.tp, m->settings->inference.dp };
    const json_t *source = find_source(m, at), *word = find_word(m, at);
    const json_t *held = json_object_get(source, "version");
    char what[MOST_CAUSE + 64];
    uint32_t rank;
    if (weir_run_worker_rank(&group, at->server, at->dp, at->tp, &rank) != WEIR_OK ||
        (!is_gone(source) && json_is_integer(held) && json_integer_value(held) >= 0 &&
         (uint64_t)json_integer_value(held) >= m->version))
        return false;
    if (went_back(word)) {
        name_worker(m->back, sizeof(m->back), rank, at, "");
        return true;
    }
    describe(m, at, source, word, what, sizeof(what));
    name_worker(m->text, m->n_text, rank, at, what);
    return true;
}

static uint32_t name_workers(missing *m)
{
    uint32_t n = 0;
    for (uint32_t server = 0; server < m->settings->orchestrator.servers.n_items; server++) {
        for (uint32_t dp = 0; dp < m->settings->inference.dp; dp++) {
            for (uint32_t tp = 0; tp < m->settings->inference.tp; tp++) {
                const place at = { server, dp, tp };
                n += is_missing(m, &at);
            }
        }
    }
    if (m->back[0] != '\0')
        append(m->text, m->n_text, "%swent back: %s", m->text[0] != '\0' ? "; " : "", m->back);
    return n;
}

uint32_t weir_broadcast_missing(const weir_run_settings *settings, const char *directory,
                                uint64_t version, char *text, size_t n_text)
{
    missing m = { .settings = settings, .version = version, .text = text, .n_text = n_text };
    weir_fleet_wish wish = WEIR_FLEET_WISH_INIT;
    char *document, workers[256] = "";
    uint32_t n = settings->trainer.broadcast.inference_world_size;
    text[0] = '\0';
    wish.directory = directory;
    wish.model = settings->orchestrator.model.name;
    wish.version = version;
    wish.timeout_ms = ASK_MS;
    if (weir_fleet_get(&wish, &document) != WEIR_OK)
        return n;
    json_t *fleet = json_loads(document, 0, NULL);
    weir_string_free(document);
    m.fleet = fleet;
    m.words = find_words(&m);
    if (name_trainers(&m)) { /* of the workers only how many */
        m.text = workers;
        m.n_text = sizeof(workers);
    }
    if (settings->inference.present)
        n = name_workers(&m);
    json_decref(fleet);
    return n;
}
