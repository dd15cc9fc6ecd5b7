/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator.c - the handle: one version after the other, and one line for each. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "base/options.h"
#include "broadcast/orchestrator_core.h"

#define MOST_SHORT_MS 30000u
#define MS_PER_S 1000u

/* ---- opening ---------------------------------------------------------------------------------*/

static weir_status open_servers(weir_orchestrator *orchestrator)
{
    const weir_run_texts *servers = &orchestrator->settings->orchestrator.servers;
    size_t n = servers->n_items;
    if (n == 0 || n > WEIR_ROUND_MOST_SERVERS)
        return weir_fail(WEIR_ERR_INVALID, "orchestrator.servers names %zu servers, 1 to %u can be",
                         n, WEIR_ROUND_MOST_SERVERS);
    weir_status status = weir_server_calls_open(servers->items, n, &orchestrator->options.security,
                                                &orchestrator->calls);
    if (status != WEIR_OK)
        return status;
    orchestrator->servers = weir_alloc_zeroed(n, sizeof(*orchestrator->servers));
    orchestrator->known = weir_alloc_zeroed(n, sizeof(*orchestrator->known));
    if (orchestrator->servers == NULL || orchestrator->known == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++)
        orchestrator->known[i].info.url = weir_server_calls_address(orchestrator->calls, i);
    orchestrator->n_servers = n;
    weir_round_open(&orchestrator->round, orchestrator->settings->orchestrator.server_policy,
                    orchestrator->servers, n);
    return WEIR_OK;
}

static weir_status open_all(weir_orchestrator *orchestrator)
{
    if (orchestrator->options.config == NULL)
        return weir_fail(WEIR_ERR_INVALID, "weir_orchestrator_open: config is required");
    weir_status status =
        weir_run_config_settings(orchestrator->options.config, &orchestrator->settings);
    if (status != WEIR_OK)
        return status;
    if (orchestrator->settings->orchestrator.broadcast.type != WEIR_RUN_NCCL)
        return weir_fail(WEIR_ERR_INVALID,
                         "orchestrator.weight_broadcast.type is filesystem: there is no broadcast "
                         "to conduct, type nccl is");
    orchestrator->timeout_ms = orchestrator->settings->orchestrator.broadcast.timeout_s * MS_PER_S;
    orchestrator->short_ms =
        orchestrator->timeout_ms / 2 < MOST_SHORT_MS ? orchestrator->timeout_ms / 2 : MOST_SHORT_MS;
    status = weir_security_resolve(&orchestrator->options.security, &orchestrator->kept);
    if (status == WEIR_OK)
        status = open_servers(orchestrator);
    return status == WEIR_OK ? weir_orchestrator_watch_open(orchestrator) : status;
}

weir_status weir_orchestrator_open(const weir_orchestrator_options *options,
                                   weir_orchestrator **out)
{
    weir_orchestrator *orchestrator = weir_alloc_zeroed(1, sizeof(*orchestrator));
    if (orchestrator == NULL)
        return WEIR_ERR_NO_MEMORY;
    pthread_mutex_init(&orchestrator->lock, NULL);
    weir_status status = weir_options_read(options, "weir_orchestrator_options",
                                           &orchestrator->options, sizeof(orchestrator->options));
    if (status == WEIR_OK)
        status = open_all(orchestrator);
    if (status != WEIR_OK) {
        weir_orchestrator_close(orchestrator);
        return status;
    }
    *out = orchestrator;
    return WEIR_OK;
}

void weir_orchestrator_close(weir_orchestrator *orchestrator)
{
    if (orchestrator == NULL)
        return;
    weir_directory_client_close(orchestrator->client);
    weir_server_calls_close(orchestrator->calls);
    weir_security_free(&orchestrator->kept);
    pthread_mutex_destroy(&orchestrator->lock);
    weir_free(orchestrator->servers);
    weir_free(orchestrator->known);
    weir_free(orchestrator);
}

/* ---- what went wrong -------------------------------------------------------------------------*/

static weir_status status_of(weir_call_end end)
{
    switch (end) {
    case WEIR_CALL_UNSENT:
    case WEIR_CALL_LOST:
        return WEIR_ERR_PEER_LOST;
    case WEIR_CALL_LATE:
        return WEIR_ERR_TIMED_OUT;
    case WEIR_CALL_GARBLED:
        return WEIR_ERR_FORMAT;
    default:
        return WEIR_ERR_REFUSED;
    }
}

typedef struct sentence {
    char text[WEIR_ERROR_TEXT];
    size_t n;
} sentence;

static void add(sentence *line, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(sentence *line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line->text + line->n, sizeof(line->text) - line->n, format, arguments);
    va_end(arguments);
    if (n > 0)
        line->n += (size_t)n;
    if (line->n >= sizeof(line->text))
        line->n = sizeof(line->text) - 1;
}

static bool is_culprit(const weir_round_server *server)
{
    return !server->is_absent && (server->has_failed || server->is_dropped);
}

/* Those that failed, each with its cause, and the status of the first. A version that is sent to
 * all at once fails for all: those whose fault it was not are named when nobody else is. */
static weir_status add_culprits(const weir_orchestrator *orchestrator, sentence *line)
{
    weir_status status = WEIR_OK;
    bool any = false;
    for (size_t i = 0; i < orchestrator->n_servers; i++)
        any |= is_culprit(&orchestrator->servers[i]) && !orchestrator->servers[i].is_blameless;
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        const weir_round_server *server = &orchestrator->servers[i];
        const weir_driven_server *known = &orchestrator->known[i];
        if (!is_culprit(server) || (any && server->is_blameless))
            continue;
        add(line, "%sserver %s: %s", status == WEIR_OK ? "" : "; ", known->info.url,
            known->cause[0] != '\0' ? known->cause : "it does not run on it");
        if (status == WEIR_OK)
            status = status_of(server->failed_by);
    }
    if (status == WEIR_OK) {
        add(line, "no server takes part");
        status = WEIR_ERR_REFUSED;
    }
    return status;
}

/* Those that nobody may ask for tokens until somebody has looked. */
static void add_paused(const weir_orchestrator *orchestrator, sentence *line)
{
    bool any = false;
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        const weir_round_server *server = &orchestrator->servers[i];
        char held[64];
        if (server->is_absent || !server->is_paused || server->must_look)
            continue;
        weir_held_text(&server->holds, held, sizeof(held));
        add(line, "%s %s (holds %s)", any ? "," : "; paused:", orchestrator->known[i].info.url,
            held);
        any = true;
    }
}

static weir_status fail_step(const weir_orchestrator *orchestrator)
{
    const weir_round *round = &orchestrator->round;
    sentence line = { .n = 0 };
    char old[64];
    weir_held_text(&round->old, old, sizeof(old));
    if (round->has_installed)
        add(&line, "version %" PRIu64 " is served, but not by all: ", orchestrator->version);
    else
        add(&line,
            "version %" PRIu64 " is not installed, the run is on %s: ", orchestrator->version, old);
    weir_status status = add_culprits(orchestrator, &line);
    add_paused(orchestrator, &line);
    return weir_fail(status, "%s", line.text);
}

/* ---- rounds ----------------------------------------------------------------------------------*/

static void begin(weir_orchestrator *orchestrator)
{
    orchestrator->deadline = weir_deadline_in(orchestrator->timeout_ms);
    orchestrator->has_touched = false;
    pthread_mutex_lock(&orchestrator->lock);
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        weir_driven_server *known = &orchestrator->known[i];
        known->cause[0] = known->trouble[0] = '\0';
        known->rests_until = known->paused_ns = 0;
        known->paused_s = 0;
        known->info.pause_s = known->info.update_s = known->info.resume_s = 0;
    }
    pthread_mutex_unlock(&orchestrator->lock);
}

/* A fleet that runs on a version already has been seen through it. */
static void find_last(weir_orchestrator *orchestrator)
{
    const weir_held_key *old = &orchestrator->round.old;
    bool is_on = old->held == WEIR_HELD_VERSION;
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        const weir_round_server *server = &orchestrator->servers[i];
        is_on &= server->is_absent ||
                 (!server->must_look && !server->is_paused && weir_held_equal(&server->holds, old));
    }
    if (!is_on)
        return;
    orchestrator->has_last = true;
    orchestrator->last = old->version;
}

/* Those that were found paused, and run again. */
static void add_resumed(const weir_orchestrator *orchestrator, sentence *line)
{
    bool any = false;
    char held[64];
    weir_held_text(&orchestrator->round.wanted, held, sizeof(held));
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        if (!orchestrator->servers[i].has_resumed)
            continue;
        if (!any)
            add(line, "all that were asked hold %s, so these run again: ", held);
        add(line, "%s%s", any ? ", " : "", orchestrator->known[i].info.url);
        any = true;
    }
}

weir_status weir_orchestrator_init(weir_orchestrator *orchestrator)
{
    sentence line = { .n = 0 }, resumed = { .text = "" };
    begin(orchestrator);
    weir_round_begin_join(&orchestrator->round);
    weir_orchestrator_drive(orchestrator);
    add_resumed(orchestrator, &resumed);
    if (resumed.n > 0)
        weir_log(WEIR_LOG_WARN, "%s", resumed.text);
    if (!weir_round_is_done(&orchestrator->round)) {
        weir_status status = add_culprits(orchestrator, &line);
        return weir_fail(status, "not all servers take part: %s%s%.300s", line.text,
                         resumed.n > 0 ? "; " : "", resumed.text);
    }
    find_last(orchestrator);
    return WEIR_OK;
}

static void report_of(const weir_orchestrator *orchestrator, double seconds,
                      weir_orchestration_report *out)
{
    *out = (weir_orchestration_report){ .version = orchestrator->version,
                                        .n_servers = (uint32_t)orchestrator->n_servers,
                                        .seconds = seconds };
    for (size_t i = 0; i < orchestrator->n_servers; i++) {
        const weir_round_server *server = &orchestrator->servers[i];
        const weir_driven_server *known = &orchestrator->known[i];
        out->n_updated +=
            orchestrator->round.has_installed && weir_round_takes_part(&orchestrator->round, i);
        out->n_dropped += server->is_absent || server->is_dropped;
        out->paused_s = known->paused_s > out->paused_s ? known->paused_s : out->paused_s;
    }
}

static void log_step(const weir_orchestration_report *report, weir_status status, const char *line)
{
    const weir_log_number version = weir_log_count(report->version);
    const weir_log_number seconds = weir_log_real(report->seconds);
    const weir_log_number paused = weir_log_real(report->paused_s);
    const weir_log_field fields[] = { { "version", version.text, true },
                                      { "status", weir_status_name(status), false },
                                      { "seconds", seconds.text, true },
                                      { "paused_seconds", paused.text, true } };
    if (status != WEIR_OK)
        weir_log_with(WEIR_LOG_ERROR, fields, 4, "%s", line);
    else
        weir_log_with(WEIR_LOG_INFO, fields, 4,
                      "version %" PRIu64 " is served by %u of %u servers after %.3f s, paused for "
                      "%.3f s",
                      report->version, report->n_updated, report->n_servers, report->seconds,
                      report->paused_s);
}

weir_status weir_orchestrator_step(weir_orchestrator *orchestrator,
                                   weir_orchestration_report *report)
{
    weir_orchestration_report own;
    weir_status status = weir_orchestrator_await_and_look(orchestrator, &orchestrator->version);
    if (status != WEIR_OK)
        return status;
    uint64_t begun_ns = weir_now_ns();
    begin(orchestrator);
    weir_round_begin(&orchestrator->round, orchestrator->version);
    weir_orchestrator_drive(orchestrator);
    report_of(orchestrator, (double)(weir_now_ns() - begun_ns) / 1e9, &own);
    if (orchestrator->round.has_installed) {
        orchestrator->has_last = true;
        orchestrator->last = orchestrator->version;
    }
    if (!weir_round_is_done(&orchestrator->round))
        status = fail_step(orchestrator);
    log_step(&own, status, status == WEIR_OK ? "" : weir_last_error());
    if (report != NULL)
        *report = own;
    return status;
}

void weir_orchestrator_cancel(weir_orchestrator *orchestrator)
{
    atomic_store(&orchestrator->is_cancelled, true);
    if (orchestrator->client != NULL)
        weir_directory_client_interrupt(orchestrator->client);
}

size_t weir_orchestrator_servers(const weir_orchestrator *orchestrator)
{
    return orchestrator->n_servers;
}

void weir_orchestrator_server(const weir_orchestrator *orchestrator, size_t i,
                              weir_server_info *out)
{
    if (i >= orchestrator->n_servers) {
        *out = (weir_server_info){ .url = "" };
        return;
    }
    pthread_mutex_lock((pthread_mutex_t *)&orchestrator->lock);
    *out = orchestrator->known[i].info;
    pthread_mutex_unlock((pthread_mutex_t *)&orchestrator->lock);
}
