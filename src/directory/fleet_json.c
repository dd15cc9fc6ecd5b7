/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_json.c - walks the store and writes what it sees: flat lists, each record naming its model
 * and run, so that a reader groups them as it likes. docs/wire.md has the schema.
 *
 * Everything is counted, and of everything only so much is listed: a fleet of ten thousand workers
 * must not stop its directory for a look at them. */
#include "directory/fleet_json.h"

#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/traceparent.h"
#include "directory/json_text.h"
#include "weir/weir.h"

#define NS_PER_S 1000000000ull
#define MOST_GROUPS 128u
#define MOST_WORKERS 2048u /* and sources */
#define MOST_VERSIONS 64u
#define MOST_VERSIONS_OF_RUN 8u
#define MOST_MISSING 64u
#define MOST_LEASES 64u
#define MOST_IN_FLIGHT 512u
#define SILENT_MS 10000u /* workers speak each second: one that does not is gone */
#define MOST_REFITS 64u
#define MOST_REFITS_OF_RUN 8u
#define MOST_WORDS 64u /* of one refit among the last ones: half of them the latest */
#define MOST_WORDS_OF_ONE 8192u

/* Sources that are alike. */
typedef struct source_group {
    const weir_store_source *first;
    size_t n;
} source_group;

typedef struct fleet_writer {
    weir_json_text json;
    const weir_directory_core *core;
    uint64_t now_ms, number;
    size_t n, n_left_out; /* of the list that is being written */
    source_group groups[MOST_GROUPS];
    size_t n_groups;
    const char *model, *run; /* of the records before, and how many of their run */
    uint64_t refit;
    size_t n_of_run;
    const weir_store_version *version; /* that is being written */
} fleet_writer;

static const char *text_of(const char *text)
{
    return text != NULL ? text : "";
}

static void begin_list(fleet_writer *writer, const char *key)
{
    writer->n = writer->n_left_out = writer->n_of_run = 0;
    writer->model = writer->run = NULL;
    weir_json_open_list(&writer->json, key);
}

static void end_list(fleet_writer *writer, const char *left_out_key)
{
    weir_json_close_list(&writer->json);
    weir_json_number(&writer->json, left_out_key, writer->n_left_out);
}

/* False when the list has as many as it may have. */
static bool has_room(fleet_writer *writer, size_t most)
{
    if (writer->n < most) {
        writer->n++;
        return true;
    }
    writer->n_left_out++;
    return false;
}

/* Whether this record is of the same model and run as the one before. */
static bool is_same_run(fleet_writer *writer, const char *model, const char *run)
{
    bool is_same =
        writer->model != NULL && strcmp(writer->model, model) == 0 && strcmp(writer->run, run) == 0;
    writer->model = model;
    writer->run = run;
    return is_same;
}

/* ---- the directory itself --------------------------------------------------------------------*/

static void write_directory(fleet_writer *writer)
{
    weir_json_text *json = &writer->json;
    const weir_directory_core *core = writer->core;
    const weir_store_totals totals = weir_store_count(core->store);
    const char *trouble = core->log->ops->trouble(core->log);
    weir_rpc_counts rpc = { 0 };
    if (core->server != NULL)
        rpc = weir_rpc_server_counts(core->server);
    weir_json_open(json, "directory");
    weir_json_string(json, "weir", WEIR_VERSION);
    weir_json_number(json, "uptime_s", (weir_now_ns() - core->begun_ns) / NS_PER_S);
    weir_json_string(json, "trouble", trouble != NULL ? trouble : "");
    weir_json_number(json, "connections", rpc.open_connections);
    weir_json_number(json, "waits", core->waits.n_waits);
    weir_json_number(json, "calls", rpc.calls);
    weir_json_number(json, "failures", rpc.failures);
    weir_json_number(json, "workers", totals.n_workers);
    weir_json_number(json, "versions", totals.n_versions);
    weir_json_number(json, "shards", totals.n_shards);
    weir_json_number(json, "leases", totals.n_leases);
    weir_json_number(json, "sources", totals.n_sources);
    weir_json_number(json, "store_bytes", totals.n_bytes);
    weir_json_number(json, "published_bytes", core->counts.events.n_shard_bytes);
    weir_json_number(json, "installed_bytes", core->counts.n_installed_bytes);
    weir_json_close(json);
}

/* The trainer that has the directory for itself, whether it has registered yet or not. */
static void write_trainer(fleet_writer *writer)
{
    weir_json_text *json = &writer->json;
    const weir_directory_group *group = &writer->core->group;
    if (group->model == NULL)
        return;
    weir_json_open(json, "trainer");
    weir_json_string(json, "model", group->model);
    weir_json_string(json, "run", group->run);
    weir_json_number(json, "inference_workers", group->n_workers);
    weir_json_close(json);
}

/* ---- who is there ----------------------------------------------------------------------------*/

static const char *status_name(const fleet_writer *writer, const weir_store_source *source)
{
    static const char *const names[] = { "UNKNOWN", "INITIALIZING", "READY", "STALE" };
    if (weir_store_is_source_gone(source, writer->now_ms))
        return "GONE";
    return (unsigned)source->status < 4 ? names[source->status] : "UNKNOWN";
}

static bool is_alike(const fleet_writer *writer, const weir_store_source *a,
                     const weir_store_source *b)
{
    return a->step == b->step && status_name(writer, a) == status_name(writer, b) &&
           a->has_step == b->has_step && strcmp(text_of(a->role), text_of(b->role)) == 0 &&
           strcmp(text_of(a->run), text_of(b->run)) == 0 && strcmp(a->model, b->model) == 0;
}

static bool group_source(void *context, const weir_store_source *source)
{
    fleet_writer *writer = context;
    size_t i = 0;
    while (i < writer->n_groups && !is_alike(writer, writer->groups[i].first, source))
        i++;
    if (i == MOST_GROUPS) {
        writer->n_left_out++;
        return true;
    }
    if (i == writer->n_groups)
        writer->groups[writer->n_groups++] = (source_group){ source, 0 };
    writer->groups[i].n++;
    return true;
}

static void write_source_kind(fleet_writer *writer, const weir_store_source *source)
{
    weir_json_text *json = &writer->json;
    weir_json_string(json, "model", source->model);
    weir_json_string(json, "run", text_of(source->run));
    weir_json_string(json, "role", text_of(source->role));
    weir_json_string(json, "status", status_name(writer, source));
    if (source->has_step)
        weir_json_number(json, "version", source->step);
}

static void write_groups(fleet_writer *writer, const char *model)
{
    begin_list(writer, "groups");
    writer->n_groups = 0;
    weir_store_each_source(writer->core->store, model, group_source, writer);
    for (size_t i = 0; i < writer->n_groups; i++) {
        weir_json_open(&writer->json, NULL);
        write_source_kind(writer, writer->groups[i].first);
        weir_json_number(&writer->json, "n", writer->groups[i].n);
        weir_json_close(&writer->json);
    }
    end_list(writer, "groups_left_out");
}

static bool write_source(void *context, const weir_store_source *source)
{
    fleet_writer *writer = context;
    weir_json_text *json = &writer->json;
    if (!has_room(writer, MOST_WORKERS))
        return true;
    weir_json_open(json, NULL);
    weir_json_string(json, "worker_id", source->worker_id);
    write_source_kind(writer, source);
    weir_json_number(json, "rank", source->rank);
    weir_json_string(json, "version_uid", text_of(source->version_uid));
    weir_json_string(json, "host", text_of(source->host));
    weir_json_string(json, "endpoint", text_of(source->endpoint));
    weir_json_number(json, "updated_ms",
                     source->updated_at_ms > 0 ? (uint64_t)source->updated_at_ms : 0);
    weir_json_close(json);
    return true;
}

static bool write_worker(void *context, const weir_store_worker *worker)
{
    fleet_writer *writer = context;
    weir_json_text *json = &writer->json;
    if (worker->expires_ms <= writer->now_ms || !has_room(writer, MOST_WORKERS))
        return true;
    weir_json_open(json, NULL);
    weir_json_string(json, "worker_id", worker->worker_id);
    weir_json_string(json, "model", worker->model);
    weir_json_string(json, "role",
                     worker->role == WEIR_STORE_TRAINER ? "trainer" : "inference_replica");
    weir_json_number(json, "generation", worker->generation);
    weir_json_number(json, "expires_ms", worker->expires_ms);
    weir_json_bool(json, "superseded", worker->is_superseded);
    weir_json_close(json);
    return true;
}

/* ---- versions --------------------------------------------------------------------------------*/

static const weir_progress_entry *said_by(const fleet_writer *writer, const char *worker_id)
{
    const weir_store_version *version = writer->version;
    const weir_progress_entry *entry = weir_progress_find(&writer->core->progress, worker_id);
    bool is_of_this = entry != NULL && version->has_number && entry->number == version->number &&
                      strcmp(entry->model, version->model) == 0;
    return is_of_this ? entry : NULL;
}

static bool write_lease(void *context, const char *worker_id, uint64_t expires_ms)
{
    fleet_writer *writer = context;
    weir_json_text *json = &writer->json;
    weir_store_lease lease = { .expires_ms = expires_ms };
    if (writer->n_left_out++ >= MOST_LEASES) /* here: all that were seen */
        return false;
    weir_store_get_lease(writer->core->store, writer->version->uid, worker_id, writer->now_ms,
                         &lease);
    const weir_progress_entry *said = said_by(writer, worker_id);
    weir_json_open(json, NULL);
    weir_json_string(json, "worker_id", worker_id);
    weir_json_number(json, "begun_ms", lease.begun_ms);
    weir_json_number(json, "expires_ms", expires_ms);
    weir_json_string(json, "stop", said != NULL ? said->stop : "");
    weir_json_number(json, "said_ms", said != NULL ? said->at_ms : 0);
    weir_json_close(json);
    return true;
}

static bool write_gap(void *context, const weir_store_gap *gap)
{
    fleet_writer *writer = context;
    if (writer->n_left_out++ >= MOST_MISSING)
        return false;
    weir_json_string(&writer->json, NULL, gap->slot);
    return true;
}

static bool write_gone(void *context, const weir_store_gap *gap)
{
    fleet_writer *writer = context;
    if (!gap->was_published)
        return true;
    if (writer->n_left_out++ >= MOST_MISSING)
        return false;
    weir_json_open(&writer->json, NULL);
    weir_json_string(&writer->json, "slot", gap->slot);
    weir_json_string(&writer->json, "worker_id", gap->worker_id);
    weir_json_close(&writer->json);
    return true;
}

/* The first slots that no live worker has, and those of them that had been published. */
static void write_missing(fleet_writer *writer, const weir_store_version *version)
{
    const weir_store *store = writer->core->store;
    weir_json_open_list(&writer->json, "missing");
    writer->n_left_out = 0;
    weir_store_each_gap(store, version->uid, writer->now_ms, write_gap, writer);
    weir_json_close_list(&writer->json);
    weir_json_open_list(&writer->json, "gone");
    writer->n_left_out = 0;
    weir_store_each_gap(store, version->uid, writer->now_ms, write_gone, writer);
    weir_json_close_list(&writer->json);
}

/* Slots that somebody has: of one that is over, that somebody has published. */
static size_t count_covered(const fleet_writer *writer, const weir_store_version *version)
{
    if (version->state != WEIR_STORE_STAGING && version->state != WEIR_STORE_READY)
        return version->n_covered;
    return version->n_slots -
           weir_store_each_gap(writer->core->store, version->uid, writer->now_ms, NULL, NULL);
}

static void write_version_members(fleet_writer *writer, const weir_store_version *version,
                                  size_t n_leases)
{
    static const char *const states[] = { "", "STAGING", "READY", "RELEASING", "ABORTED" };
    weir_json_text *json = &writer->json;
    weir_json_string(json, "model", version->model);
    weir_json_string(json, "run", text_of(version->run));
    if (version->has_number)
        weir_json_number(json, "version", version->number);
    weir_json_number(json, "attempt", version->attempt);
    weir_json_string(json, "uid", version->uid);
    weir_json_string(json, "state", (unsigned)version->state < 5 ? states[version->state] : "");
    weir_json_string(json, "reason", text_of(version->reason));
    weir_json_number(json, "slots", version->n_slots);
    weir_json_number(json, "covered", count_covered(writer, version));
    weir_json_bool(json, "taken_back", weir_store_is_taken_back(writer->core->store, version->uid));
    weir_json_bool(json, "unreadable",
                   weir_store_is_unreadable(writer->core->store, version->uid, writer->now_ms));
    weir_json_number(json, "created_ms", version->created_at_ms);
    weir_json_number(json, "ready_ms", version->ready_at_ms);
    weir_json_string(json, "trace_id", text_of(version->trace_id));
    weir_json_number(json, "n_leases", n_leases);
}

static bool write_version(void *context, const weir_store_version *version, size_t n_leases)
{
    fleet_writer *writer = context;
    if (writer->number != 0 && (!version->has_number || version->number != writer->number))
        return true;
    writer->n_of_run =
        is_same_run(writer, version->model, text_of(version->run)) ? writer->n_of_run + 1 : 0;
    if (writer->n_of_run >= MOST_VERSIONS_OF_RUN && n_leases == 0) {
        writer->n_left_out++;
        return true;
    }
    if (!has_room(writer, MOST_VERSIONS))
        return true;
    size_t n_left_out = writer->n_left_out;
    weir_json_open(&writer->json, NULL);
    write_version_members(writer, version, n_leases);
    writer->version = version;
    if (version->state == WEIR_STORE_STAGING || version->state == WEIR_STORE_READY)
        write_missing(writer, version);
    weir_json_open_list(&writer->json, "leases");
    writer->n_left_out = 0;
    weir_store_each_lease(writer->core->store, version->uid, writer->now_ms, write_lease, writer);
    weir_json_close_list(&writer->json);
    weir_json_close(&writer->json);
    writer->n_left_out = n_left_out;
    return true;
}

/* ---- refits ----------------------------------------------------------------------------------*/

typedef struct progress_visit {
    fleet_writer *writer;
    const char *model;
} progress_visit;

static bool write_progress(void *context, const weir_progress_entry *entry)
{
    const progress_visit *visit = context;
    weir_json_text *json = &visit->writer->json;
    if (entry->at_ms + SILENT_MS < visit->writer->now_ms)
        return true;
    if (visit->model != NULL && strcmp(visit->model, entry->model) != 0)
        return true;
    if (!has_room(visit->writer, MOST_IN_FLIGHT))
        return true;
    weir_json_open(json, NULL);
    weir_json_string(json, "worker_id", entry->worker_id);
    weir_json_string(json, "model", entry->model);
    weir_json_number(json, "version", entry->number);
    weir_json_string(json, "stop", entry->stop);
    weir_json_number(json, "done_bytes", entry->done_bytes);
    weir_json_number(json, "total_bytes", entry->total_bytes);
    weir_json_string(json, "slowest_from", entry->slowest_from);
    weir_json_number(json, "at_ms", entry->at_ms);
    weir_json_close(json);
    return true;
}

static void write_stops(weir_json_text *json, const weir_store_word *word)
{
    weir_json_open_list(json, "stops");
    for (size_t i = 0; i < word->n_spans; i++) {
        const weir_store_span *span = &word->spans[i];
        weir_json_open(json, NULL);
        weir_json_string(json, "name", span->name);
        weir_json_number(json, "begun_us", span->begun_us);
        weir_json_number(json, "duration_us", span->duration_us);
        if (text_of(span->peer)[0] != '\0') {
            weir_json_string(json, "peer", span->peer);
            weir_json_number(json, "bytes", span->n_bytes);
        }
        weir_json_close(json);
    }
    weir_json_close_list(json);
}

static void write_word(weir_json_text *json, const weir_store_word *word)
{
    weir_traceparent trace;
    weir_json_open(json, NULL);
    weir_json_string(json, "worker_id", word->worker_id);
    weir_json_string(json, "role", word->role);
    weir_json_number(json, "rank", word->rank);
    weir_json_string(json, "host", word->host);
    weir_json_string(json, "version_uid", word->version_uid);
    weir_json_string(json, "read_from", word->read_from);
    weir_json_string(json, "status", weir_status_name((weir_status)word->status));
    weir_json_string(json, "text", word->text);
    weir_json_number(json, "bytes", word->n_bytes);
    weir_json_number(json, "at_ms", word->at_ms);
    weir_json_string(json, "trace_id", word->trace_id);
    weir_traceparent_of(word->trace_id, word->worker_id, &trace);
    weir_json_string(json, "span_id", trace.span_id);
    write_stops(json, word);
    weir_json_close(json);
}

/* The first words, and the latest: those that were slowest. */
static void write_words(fleet_writer *writer, const weir_store_word *first)
{
    size_t n = 0, n_replicas = 0, n_refused = 0, i = 0;
    size_t most = writer->number != 0 ? MOST_WORDS_OF_ONE : MOST_WORDS;
    for (const weir_store_word *word = first; word != NULL; word = word->next, n++) {
        n_refused += word->status != 0;
        n_replicas += strcmp(word->role, "trainer") != 0;
    }
    weir_json_open_list(&writer->json, "words");
    for (const weir_store_word *word = first; word != NULL; word = word->next, i++) {
        if (i < most / 2 || n - i <= most / 2)
            write_word(&writer->json, word);
    }
    weir_json_close_list(&writer->json);
    weir_json_number(&writer->json, "n_words", n);
    weir_json_number(&writer->json, "n_replicas", n_replicas);
    weir_json_number(&writer->json, "n_refused", n_refused);
    weir_json_number(&writer->json, "words_left_out", n > most ? n - most : 0);
}

/* Called for every word: those of one version come one after the other. */
static bool write_refit(void *context, const char *model, const weir_store_word *word)
{
    fleet_writer *writer = context;
    bool is_same = is_same_run(writer, model, word->run);
    if (is_same && writer->refit == word->number)
        return true;
    writer->refit = word->number;
    writer->n_of_run = is_same ? writer->n_of_run + 1 : 0;
    if (writer->number != 0 ? word->number != writer->number
                            : writer->n_of_run >= MOST_REFITS_OF_RUN)
        return true;
    if (!has_room(writer, MOST_REFITS))
        return false;
    weir_json_open(&writer->json, NULL);
    weir_json_string(&writer->json, "model", model);
    weir_json_string(&writer->json, "run", word->run);
    weir_json_number(&writer->json, "version", word->number);
    write_words(writer, word);
    weir_json_close(&writer->json);
    return true;
}

/* ---- the document ----------------------------------------------------------------------------*/

static void write_all(fleet_writer *writer, const char *model)
{
    weir_json_text *json = &writer->json;
    const weir_store *store = writer->core->store;
    progress_visit visit = { writer, model };
    weir_json_open(json, NULL);
    weir_json_number(json, "now_ms", writer->now_ms);
    weir_json_number(json, "revision", weir_store_revision(store, model));
    write_directory(writer);
    write_trainer(writer);
    write_groups(writer, model);
    begin_list(writer, "sources");
    weir_store_each_source(store, model, write_source, writer);
    end_list(writer, "sources_left_out");
    begin_list(writer, "workers");
    weir_store_each_worker(store, model, write_worker, writer);
    end_list(writer, "workers_left_out");
    begin_list(writer, "versions");
    weir_store_each_version(store, model, write_version, writer);
    end_list(writer, "versions_left_out");
    begin_list(writer, "in_flight");
    weir_progress_each(&writer->core->progress, write_progress, &visit);
    end_list(writer, "in_flight_left_out");
    begin_list(writer, "refits");
    weir_store_each_word(store, model, write_refit, writer);
    weir_json_close_list(json);
    weir_json_close(json);
}

weir_status weir_fleet_json(const weir_directory_core *core, const char *model, uint64_t number,
                            uint64_t now_ms, weir_arena *arena, char **out)
{
    fleet_writer *writer = weir_arena_alloc(arena, sizeof(*writer));
    if (writer == NULL)
        return WEIR_ERR_NO_MEMORY;
    *writer = (fleet_writer){ .core = core, .now_ms = now_ms, .number = number };
    weir_json_begin(&writer->json, NULL, 0);
    write_all(writer, model);
    size_t n_bytes = writer->json.n_used + 32; /* a figure may grow while it is written */
    char *text = weir_arena_alloc(arena, n_bytes);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_json_begin(&writer->json, text, n_bytes);
    write_all(writer, model);
    if (!weir_json_end(&writer->json))
        return weir_fail(WEIR_ERR_INTERNAL, "the fleet's JSON came out longer than it was");
    *out = text;
    return WEIR_OK;
}
