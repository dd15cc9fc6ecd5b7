/* SPDX-License-Identifier: Apache-2.0 */
/* directory_news.c - one line for each change of state, with what it is about beside it as fields.
 *
 * Renewals and reads are no news: a directory at rest says nothing, however many workers it has. */
#include "directory/directory_news.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"

/* ---- versions --------------------------------------------------------------------------------*/

typedef struct version_name {
    char text[640];
} version_name;

static version_name name_of(const weir_store_version *version)
{
    version_name name;
    char number[24] = "?";
    if (version->has_number)
        snprintf(number, sizeof(number), "%" PRIu64, version->number);
    snprintf(name.text, sizeof(name.text), "version %s of %s, run %s, attempt %u (%s)", number,
             version->model, version->run[0] != '\0' ? version->run : "?", version->attempt,
             version->uid);
    return name;
}

static void log_version(const weir_store_notice *notice)
{
    const weir_store_version *version = notice->version;
    const weir_log_number attempt = weir_log_count(version->attempt);
    const weir_log_field fields[] = { { "uid", version->uid, false },
                                      { "attempt", attempt.text, true } };
    const version_name name = name_of(version);
    switch (notice->what) {
    case WEIR_STORE_VERSION_MADE:
        weir_log_with(WEIR_LOG_INFO, fields, 2, "%s is made, of %zu shards", name.text,
                      version->n_slots);
        return;
    case WEIR_STORE_VERSION_READY:
        weir_log_with(WEIR_LOG_INFO, fields, 2, "%s is READY, %.3f s after it was made", name.text,
                      (double)(version->ready_at_ms - version->created_at_ms) / 1000);
        return;
    case WEIR_STORE_VERSION_RELEASING:
        weir_log_with(WEIR_LOG_INFO, fields, 2, "%s is RELEASING", name.text);
        return;
    case WEIR_STORE_VERSION_ABORTED:
        weir_log_with(WEIR_LOG_WARN, fields, 2, "%s is ABORTED: %s", name.text,
                      version->reason[0] != '\0' ? version->reason : "no reason was given");
        return;
    case WEIR_STORE_LEASE_EXPIRED:
        weir_log_with(WEIR_LOG_WARN, fields, 2,
                      "%s: the lease of its reader %s has expired without an acknowledgement",
                      name.text, notice->worker_id);
        return;
    default:
        return;
    }
}

/* ---- workers ---------------------------------------------------------------------------------*/

static void log_worker(const weir_store_notice *notice)
{
    const char *role = notice->role == WEIR_STORE_TRAINER ? "trainer" : "replica";
    const weir_log_field fields[] = { { "role", role, false } };
    const char *what = "is registered";
    if (notice->what == WEIR_STORE_WORKER_GONE)
        what = "is gone: its registration has ended";
    else if (notice->what == WEIR_STORE_WORKER_SUPERSEDED)
        what = "is superseded: its rank was started anew as another worker";
    weir_log_with(WEIR_LOG_INFO, fields, 1, "%s %s of %s %s", role, notice->worker_id,
                  notice->model, what);
}

void weir_directory_news_log(const weir_store_notice *notice)
{
    const weir_store_version *version = notice->version;
    weir_log_scope about = { .worker = notice->worker_id, .model = notice->model };
    if (version != NULL) {
        about.run = version->run;
        about.has_version = version->has_number;
        about.version = version->number;
        about.trace_id = version->trace_id;
    }
    const weir_log_scope *outer = weir_log_enter(&about);
    if (version != NULL)
        log_version(notice);
    else
        log_worker(notice);
    weir_log_enter(outer);
}
