/* SPDX-License-Identifier: Apache-2.0 */
/* worker.c - opening and closing what both sides of a refit stand on. */
#include "refit/worker.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"

#define POLL_FIRST_MS 2u
#define POLL_LAST_MS 50u
#define RETRY_FIRST_MS 20u
#define RETRY_LAST_MS 500u
#define LEAVE_MS 2000u /* for a call of who leaves */
#define LEAST_LEAVE_MS 250u
#define LAST_LEASE_S 1u /* no call ends a registration */
#define ID_DIGITS 9u    /* "-0a1b2c3d" */

const char *weir_stop_name(weir_stop stop)
{
    static const char *const names[WEIR_N_STOPS] = {
#define NAME(name, number, text) [number] = text,
        WEIR_STOP_LIST(NAME)
#undef NAME
    };
    return (unsigned)stop < WEIR_N_STOPS ? names[stop] : "?";
}

static weir_status copy_name(char *out, const char *what, const char *name, size_t n_out)
{
    if (name == NULL || name[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "%s is required", what);
    if (strlen(name) >= n_out)
        return weir_fail(WEIR_ERR_INVALID, "%s has %zu characters, at most %zu are possible", what,
                         strlen(name), n_out - 1);
    memcpy(out, name, strlen(name) + 1);
    return WEIR_OK;
}

/* A process that is started again under its name is another worker, whose entry supersedes that of
 * the one before: the directory knows it by what is in front of the last '-'. */
static weir_status make_id(weir_worker *worker, const weir_worker_options *options)
{
    uint32_t random = 0;
    weir_status status = copy_name(worker->id, "name", options->name, WEIR_NAME_BYTES - ID_DIGITS);
    if (status != WEIR_OK)
        return status;
    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return weir_fail_errno("no random number for a worker id");
    snprintf(worker->id + strlen(worker->id), ID_DIGITS + 1, "-%08x", random);
    return WEIR_OK;
}

bool weir_worker_is_named(const char *id, const char *name)
{
    size_t n = strlen(name);
    if (strncmp(id, name, n) != 0)
        return false;
    return id[n] == '\0' || (id[n] == '-' && strlen(id + n) == ID_DIGITS &&
                             strspn(id + n + 1, "0123456789abcdef") == ID_DIGITS - 1);
}

static weir_status copy_options(weir_worker *worker, const weir_worker_options *options)
{
    weir_status status = copy_name(worker->model, "model", options->model, WEIR_NAME_BYTES);
    if (status == WEIR_OK)
        status =
            copy_name(worker->run, "run", options->run ? options->run : "default", WEIR_NAME_BYTES);
    if (status == WEIR_OK)
        status = make_id(worker, options);
    if (status != WEIR_OK)
        return status;
    unsigned lease_ms = options->lease_ms ? options->lease_ms : WEIR_DEFAULT_LEASE_MS;
    gethostname(worker->host, sizeof(worker->host) - 1);
    worker->role = options->role;
    worker->rank = options->rank;
    worker->timeout_ms = options->timeout_ms ? options->timeout_ms : WEIR_DEFAULT_TIMEOUT_MS;
    worker->lease_s = (lease_ms + 999) / 1000;
    worker->progress = options->progress;
    worker->progress_context = options->progress_context;
    if (options->transport_directory != NULL) {
        worker->transport_directory = weir_strdup(options->transport_directory);
        if (worker->transport_directory == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    return weir_security_resolve(options->security, &worker->security);
}

weir_status weir_worker_open(weir_worker *worker, const weir_worker_options *options)
{
    weir_status status = copy_options(worker, options);
    if (status == WEIR_OK)
        status = weir_pool_open(options->n_threads, &worker->pool);
    if (status == WEIR_OK)
        status =
            weir_directory_client_open(options->directory, worker->timeout_ms, &worker->client);
    if (status == WEIR_OK)
        status = weir_directory_client_secure(worker->client, &worker->security.security);
    if (status == WEIR_OK && options->looks_on) {
        weir_directory_client_heed(worker->client, &worker->cancelled);
        return WEIR_OK;
    }
    if (status == WEIR_OK)
        status = weir_directory_register_worker(worker->client, worker->id, worker->role,
                                                worker->model, worker->lease_s);
    if (status != WEIR_OK)
        return status;
    worker->is_registered = true;
    weir_directory_client_heed(worker->client, &worker->cancelled);
    weir_keeper_options keeper = { options->directory,
                                   worker->id,
                                   worker->model,
                                   worker->role,
                                   worker->lease_s,
                                   worker->timeout_ms,
                                   &worker->security.security };
    return weir_keeper_open(&keeper, &worker->keeper);
}

void weir_worker_hurry(weir_worker *worker)
{
    unsigned timeout_ms = worker->timeout_ms;
    if (worker->leave_by != 0)
        return;
    worker->leave_by =
        weir_deadline_in(timeout_ms < WEIR_CLOSE_WAIT_MS ? timeout_ms : WEIR_CLOSE_WAIT_MS);
    weir_keeper_hurry(worker->keeper);
}

unsigned weir_worker_hurry_ms(const weir_worker *worker)
{
    unsigned left_ms = weir_deadline_left_ms(worker->leave_by);
    return left_ms < LEAVE_MS ? left_ms : LEAVE_MS;
}

/* However late it is, a directory that answers hears it. */
static void bound_last_word(weir_worker *worker)
{
    unsigned bound_ms = weir_worker_hurry_ms(worker);
    weir_directory_client_bound(worker->client,
                                bound_ms > LEAST_LEAVE_MS ? bound_ms : LEAST_LEAVE_MS);
}

void weir_worker_leave(weir_worker *worker, const char *source_id, uint32_t rank)
{
    weir_status status = WEIR_OK;
    weir_worker_hurry(worker);
    weir_keeper_close(worker->keeper);
    worker->keeper = NULL;
    if (!worker->is_registered)
        return;
    bound_last_word(worker);
    if (source_id[0] != '\0')
        status = weir_directory_update_status(worker->client, source_id, worker->id, rank,
                                              WEIR_SOURCE_STALE);
    bound_last_word(worker);
    if (status != WEIR_ERR_PEER_LOST && status != WEIR_ERR_TIMED_OUT)
        weir_directory_register_worker(worker->client, worker->id, worker->role, worker->model,
                                       LAST_LEASE_S);
    worker->is_registered = false;
}

void weir_worker_close(weir_worker *worker)
{
    weir_keeper_close(worker->keeper);
    weir_directory_client_close(worker->client);
    for (size_t i = 0; i < worker->n_links; i++)
        worker->links[i].ops->close(worker->links[i].transport);
    weir_pool_close(worker->pool);
    weir_sidecar_registry_free(&worker->registry);
    weir_free(worker->transport_directory);
    weir_security_free(&worker->security);
    memset(worker, 0, sizeof(*worker));
}

weir_status weir_worker_link(weir_worker *worker, const char *name, weir_link *out)
{
    const weir_transport_ops *ops;
    weir_status status = weir_transport_get(name, &ops);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < worker->n_links; i++) {
        if (worker->links[i].ops == ops) {
            *out = worker->links[i];
            return WEIR_OK;
        }
    }
    if (worker->n_links == WEIR_MAX_LINKS)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "transport %s would be the %d-th in use", ops->name,
                         WEIR_MAX_LINKS + 1);
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.directory = worker->transport_directory;
    options.name = worker->id;
    options.pool = worker->pool;
    options.device = worker->device;
    weir_link link = { ops, NULL };
    status = ops->open(&options, &link.transport);
    if (status != WEIR_OK)
        return status;
    worker->links[worker->n_links++] = link;
    *out = link;
    return WEIR_OK;
}

weir_status weir_worker_check_cancelled(weir_worker *worker)
{
    if (!atomic_exchange(&worker->cancelled, false))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_CANCELLED, "cancelled while worker %s was waiting", worker->id);
}

weir_status weir_worker_pause(weir_worker *worker, weir_patience *patience)
{
    if (patience->wait_ms == 0)
        patience->wait_ms = POLL_FIRST_MS;
    weir_sleep_ms(patience->wait_ms);
    patience->wait_ms *= 2;
    if (patience->wait_ms > POLL_LAST_MS)
        patience->wait_ms = POLL_LAST_MS;
    return weir_worker_check_cancelled(worker);
}

void weir_worker_cancel(weir_worker *worker)
{
    atomic_store(&worker->cancelled, true);
    weir_directory_client_interrupt(worker->client);
}

void weir_worker_uncancel(weir_worker *worker)
{
    atomic_store(&worker->cancelled, false);
    weir_directory_client_uninterrupt(worker->client);
}

weir_status weir_worker_rest(weir_worker *worker, weir_retry *retry)
{
    unsigned left_ms = weir_deadline_left_ms(retry->deadline);
    retry->wait_ms = retry->wait_ms == 0 ? RETRY_FIRST_MS : 2 * retry->wait_ms;
    if (retry->wait_ms > RETRY_LAST_MS)
        retry->wait_ms = RETRY_LAST_MS;
    weir_sleep_ms(retry->wait_ms < left_ms ? retry->wait_ms : left_ms);
    return weir_worker_check_cancelled(worker);
}

/* Tells a directory that has forgotten this worker who it is. */
static weir_status register_anew(weir_worker *worker, weir_retry *retry, weir_status failed)
{
    weir_error_line cause;
    weir_error_save(&cause);
    retry->registered = true;
    weir_status status = weir_directory_register_worker(worker->client, worker->id, worker->role,
                                                        worker->model, worker->lease_s);
    weir_error_restore(&cause);
    return status == WEIR_OK || status == WEIR_ERR_PEER_LOST ? WEIR_OK : failed;
}

weir_status weir_worker_retry(weir_worker *worker, weir_retry *retry, weir_status failed)
{
    if (failed == WEIR_ERR_REFUSED && !retry->registered)
        return register_anew(worker, retry, failed);
    if (failed != WEIR_ERR_PEER_LOST || weir_deadline_passed(retry->deadline))
        return failed;
    if (retry->wait_ms == 0)
        weir_log(WEIR_LOG_WARN, "the directory is asked again: %s", weir_last_error());
    retry->registered = false;
    return weir_worker_rest(worker, retry);
}

weir_source_record weir_worker_entry(const weir_worker *worker, uint64_t version,
                                     const char *version_uid, const char *endpoint)
{
    weir_source_record record = { .n_ranks = 1, .status = WEIR_SOURCE_READY, .version = version };
    snprintf(record.worker_id, sizeof(record.worker_id), "%s", worker->id);
    snprintf(record.model, sizeof(record.model), "%s", worker->model);
    snprintf(record.run, sizeof(record.run), "%s", worker->run);
    snprintf(record.role, sizeof(record.role), "%s",
             worker->role == WEIR_ROLE_TRAINER ? "trainer" : "inference_replica");
    snprintf(record.version_uid, sizeof(record.version_uid), "%s", version_uid);
    snprintf(record.endpoint, sizeof(record.endpoint), "%s", endpoint);
    return record;
}

void weir_worker_progress(const weir_worker *worker, weir_stop stop, uint64_t version,
                          uint64_t done_bytes, uint64_t total_bytes)
{
    const weir_keeper_step step = { weir_stop_name(stop), version, done_bytes, total_bytes };
    /* Who waits for a version is in no refit yet: weir_worker_is_about() says when it is. */
    if (stop != WEIR_STOP_DISCOVER)
        weir_worker_note(worker, &step);
    if (worker->progress != NULL)
        worker->progress(worker->progress_context, stop, version, done_bytes, total_bytes);
}

void weir_worker_note(const weir_worker *worker, const weir_keeper_step *step)
{
    if (worker->keeper != NULL && !weir_directory_is_plain(worker->client))
        weir_keeper_note(worker->keeper, step);
}

void weir_worker_waits_for(const weir_worker *worker, const char *whom)
{
    weir_keeper_waits_for(worker->keeper, whom);
}
