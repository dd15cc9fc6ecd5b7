/* SPDX-License-Identifier: Apache-2.0 */
/* inference.c - opening and closing an inference server: its memory first, since nobody is to be
 * told of one that cannot hold a model, then its threads, then HTTP. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/options.h"
#include "broadcast/inference_core.h"

#define DEFAULT_HTTP "127.0.0.1:8000"
#define DEFAULT_TIMEOUT_MS 60000u

/* ---- options ---------------------------------------------------------------------------------*/

static weir_status keep_texts(weir_inference *server)
{
    weir_inference_options *options = &server->options;
    weir_security *security = &options->security;
    const char **const texts[] = { &options->http,      &options->model,
                                   &options->name,      &options->family,
                                   &options->layout,    &options->conversion,
                                   &options->config,    &options->experts,
                                   &options->transport, &options->transport_directory,
                                   &options->listen,    &security->certificate,
                                   &security->key,      &security->ca,
                                   &security->token,    &security->token_file };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (*texts[i] == NULL)
            continue;
        *texts[i] = weir_arena_strdup(&server->arena, *texts[i]);
        if (*texts[i] == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    return WEIR_OK;
}

static weir_status check(const weir_inference_options *options)
{
    if (options->model == NULL || (options->config == NULL && options->live == NULL))
        return weir_fail(WEIR_ERR_INVALID, "%s is required",
                         options->model == NULL ? "model" : "config");
    uint64_t n_workers = (uint64_t)options->tp * options->dp;
    if (n_workers > WEIR_INFERENCE_MOST_WORKERS)
        return weir_fail(WEIR_ERR_INVALID, "tp %u and dp %u are %llu workers, %u are the most",
                         options->tp, options->dp, (unsigned long long)n_workers,
                         WEIR_INFERENCE_MOST_WORKERS);
    if (n_workers % options->ep != 0)
        return weir_fail(WEIR_ERR_INVALID, "ep %u does not divide the %llu workers of tp %u, dp %u",
                         options->ep, (unsigned long long)n_workers, options->tp, options->dp);
    return WEIR_OK;
}

static weir_status take_options(weir_inference *server, const weir_inference_options *given)
{
    weir_inference_options *options = &server->options;
    *options = *given;
    options->http = options->http != NULL ? options->http : DEFAULT_HTTP;
    options->tp = options->tp != 0 ? options->tp : 1;
    options->dp = options->dp != 0 ? options->dp : 1;
    options->ep = options->ep != 0 ? options->ep : 1;
    options->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
    weir_status status = check(options);
    if (status == WEIR_OK)
        status = keep_texts(server);
    if (status == WEIR_OK)
        status = weir_security_resolve(&given->security, &server->kept);
    if (status != WEIR_OK)
        return status;
    server->n_workers = options->tp * options->dp;
    server->info.n_workers = server->n_workers;
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (options->n_threads == 0)
        options->n_threads =
            n_cores > server->n_workers ? (unsigned)n_cores / server->n_workers : 1;
    return WEIR_OK;
}

/* ---- workers ---------------------------------------------------------------------------------*/

void weir_inference_mesh(const weir_inference *server, char out[WEIR_INFERENCE_MESH_BYTES])
{
    const weir_inference_options *options = &server->options;
    if (options->ep == 1)
        snprintf(out, WEIR_INFERENCE_MESH_BYTES, "tp=%u", options->tp);
    else
        snprintf(out, WEIR_INFERENCE_MESH_BYTES, "tp=%u,dp=%u,ep=%u", options->tp, options->dp,
                 options->ep);
}

uint32_t weir_inference_mesh_worker(const weir_inference_worker *worker)
{
    return worker->server->options.ep == 1 ? worker->tp_rank : worker->index;
}

static weir_status allocate_memory(weir_inference_worker *worker)
{
    const weir_inference_options *options = &worker->server->options;
    char mesh[WEIR_INFERENCE_MESH_BYTES];
    weir_inference_mesh(worker->server, mesh);
    const weir_inference_part part = { .family = options->family,
                                       .layout = options->layout,
                                       .conversion = options->conversion,
                                       .config = options->config,
                                       .experts = options->experts,
                                       .mesh = mesh,
                                       .worker = weir_inference_mesh_worker(worker),
                                       .device = worker->device };
    return weir_inference_memory_open(&worker->memory, &part);
}

static weir_status open_memory(weir_inference_worker *worker)
{
    const weir_inference_live *live = worker->server->options.live;
    weir_status status = live != NULL
                             ? weir_inference_memory_take(&worker->memory, &live[worker->index])
                             : allocate_memory(worker);
    if (status != WEIR_OK)
        weir_error_prefix("worker %u", worker->index);
    return status;
}

static weir_status open_workers(weir_inference *server, const char *const *devices)
{
    server->workers = weir_alloc_zeroed(server->n_workers, sizeof(*server->workers));
    if (server->workers == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_vote_open(server->n_workers, &server->vote);
    for (uint32_t i = 0; i < server->n_workers; i++) {
        weir_inference_worker *worker = &server->workers[i];
        worker->server = server;
        worker->index = i;
        worker->engine = i / server->options.tp;
        worker->tp_rank = i % server->options.tp;
        if (devices != NULL && devices[i] != NULL && status == WEIR_OK) {
            worker->device = weir_arena_strdup(&server->arena, devices[i]);
            status = worker->device != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
        }
        if (status == WEIR_OK)
            status = open_memory(worker);
    }
    server->options.devices = NULL; /* the caller's */
    server->options.live = NULL;
    return status;
}

/* ---- threads ---------------------------------------------------------------------------------*/

static weir_status start_thread(pthread_t *thread, void *(*run)(void *context), void *context,
                                bool *out_runs)
{
    int code = pthread_create(thread, NULL, run, context);
    if (code != 0)
        return weir_fail(WEIR_ERR_IO, "cannot start a thread: %s", strerror(code));
    *out_runs = true;
    return WEIR_OK;
}

/* Signals belong to the program's own threads. */
static weir_status start_threads(weir_inference *server)
{
    sigset_t all, before;
    weir_status status = WEIR_OK;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 0; i < server->n_workers && status == WEIR_OK; i++) {
        weir_inference_worker *worker = &server->workers[i];
        status = start_thread(&worker->thread, weir_inference_work, worker, &worker->has_thread);
    }
    if (status == WEIR_OK)
        status = start_thread(&server->conductor, weir_inference_conduct, server,
                              &server->has_conductor);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

/* The conductor ends the workers; without one, of a server that did not open, nobody else does. */
static void stop_threads(weir_inference *server)
{
    pthread_mutex_lock(&server->lock);
    atomic_store(&server->is_stopping, true);
    if (server->looking != NULL)
        weir_directory_client_interrupt(server->looking);
    for (uint32_t i = 0; i < server->n_workers && !server->has_conductor; i++)
        server->workers[i].task = WEIR_TASK_STOP;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
    if (server->has_conductor)
        pthread_join(server->conductor, NULL);
    for (uint32_t i = 0; i < server->n_workers; i++) {
        if (server->workers[i].has_thread)
            pthread_join(server->workers[i].thread, NULL);
    }
}

/* ---- opening and closing ---------------------------------------------------------------------*/

static void open_locks(weir_inference *server)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&server->lock, NULL);
    pthread_mutex_init(&server->progress_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static weir_status open_parts(weir_inference *server, const weir_inference_options *options)
{
    weir_status status = take_options(server, options);
    weir_inference_engine_open(&server->engine, &options->hooks, server->n_workers);
    if (status == WEIR_OK)
        status = open_workers(server, options->devices);
    if (status == WEIR_OK)
        status = weir_inference_http_open(server, &server->http);
    if (status == WEIR_OK)
        status = start_threads(server);
    return status;
}

weir_status weir_inference_open(const weir_inference_options *given, weir_inference **out)
{
    weir_inference_options own;
    weir_status status = weir_options_read(given, "weir_inference_options", &own, sizeof(own));
    if (status != WEIR_OK)
        return status;
    weir_inference *server = weir_alloc_zeroed(1, sizeof(*server));
    if (server == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_arena_init(&server->arena, 0);
    open_locks(server);
    status = open_parts(server, &own);
    if (status != WEIR_OK) {
        weir_inference_close(server);
        return status;
    }
    *out = server;
    return WEIR_OK;
}

void weir_inference_close(weir_inference *server)
{
    if (server == NULL)
        return;
    if (server->workers != NULL)
        stop_threads(server);
    weir_inference_http_close(server->http);
    for (uint32_t i = 0; server->workers != NULL && i < server->n_workers; i++)
        weir_inference_memory_close(&server->workers[i].memory);
    weir_free(server->workers);
    weir_vote_close(server->vote);
    weir_inference_engine_close(&server->engine);
    weir_security_free(&server->kept);
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->progress_lock);
    pthread_mutex_destroy(&server->lock);
    weir_arena_close(&server->arena);
    weir_free(server);
}

/* ---- looks -----------------------------------------------------------------------------------*/

const char *weir_inference_address(const weir_inference *server)
{
    return weir_inference_http_address(server->http);
}

void weir_inference_get_info(const weir_inference *server, weir_inference_info *out)
{
    weir_inference *own =
        (weir_inference *)(uintptr_t)server; /* the lock is no part of what is told */
    pthread_mutex_lock(&own->lock);
    *out = server->info;
    out->updating = weir_inference_is_changing(&server->order);
    pthread_mutex_unlock(&own->lock);
}

const weir_tensor *weir_inference_parameters(const weir_inference *server, uint32_t worker,
                                             size_t *out_n)
{
    *out_n = 0;
    if (worker >= server->n_workers)
        return NULL;
    *out_n = server->workers[worker].memory.n_tensors;
    return server->workers[worker].memory.tensors;
}
