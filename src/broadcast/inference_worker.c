/* SPDX-License-Identifier: Apache-2.0 */
/* inference_worker.c - one worker of a server: a thread that owns one replica, which installs into
 * memory that was there before it and stays behind it. */
#include <stdio.h>
#include <string.h>

#include "broadcast/inference_core.h"
#include "refit/replica.h"

#define CANCEL_AGAIN_NS 250000000ull /* to a call that had not begun */

/* ---- what its installs come to ---------------------------------------------------------------*/

static weir_status agree(void *context, uint64_t version, weir_status mine)
{
    weir_inference_worker *worker = context;
    weir_ballot ballot = worker->ballot;
    worker->ballot = ballot == WEIR_BALLOT_LANDED ? WEIR_BALLOT_TAKEN : WEIR_BALLOT_UNTOUCHED;
    return weir_vote_cast(worker->server->vote, worker->index, ballot, version, mine);
}

static weir_status pause_engine(void *context)
{
    const weir_inference_worker *worker = context;
    return weir_inference_engine_pause(&worker->server->engine);
}

/* The engine looks when all workers' parameters have changed. */
static weir_status take(void *context, uint64_t version)
{
    const weir_inference_worker *worker = context;
    weir_inference *server = worker->server;
    if (worker->task == WEIR_TASK_REVERT) /* of this server, whatever the replica has seen of it */
        version = worker->before.has_version ? worker->before.version : 0;
    weir_status status =
        weir_vote_cast(server->vote, worker->index, WEIR_BALLOT_CHANGED, version, WEIR_OK);
    return status == WEIR_OK ? weir_inference_engine_take(&server->engine, version) : status;
}

static void is_whole(void *context)
{
    const weir_inference_worker *worker = context;
    weir_inference_engine_is_whole(&worker->server->engine);
}

static void progress(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                     uint64_t total_bytes)
{
    weir_inference_worker *worker = context;
    weir_inference *server = worker->server;
    atomic_store(&worker->stop, (int)stop);
    if (stop == WEIR_STOP_TRANSFER && done_bytes > 0)
        atomic_store(&worker->has_landed, true);
    if (server->options.progress == NULL)
        return;
    pthread_mutex_lock(&server->progress_lock);
    server->options.progress(server->options.progress_context, stop, version, done_bytes,
                             total_bytes);
    pthread_mutex_unlock(&server->progress_lock);
}

/* ---- joining and leaving ---------------------------------------------------------------------*/

/* Whoever is told of the replica by the lock may cancel it. */
static void set_replica(weir_inference_worker *worker, weir_replica *replica)
{
    pthread_mutex_lock(&worker->server->lock);
    worker->replica = replica;
    worker->before.is_there = false; /* a replica goes back where it has been itself */
    pthread_mutex_unlock(&worker->server->lock);
}

static weir_replica_options options_of(weir_inference_worker *worker, const char *directory,
                                       const char *name, const char *mesh)
{
    const weir_inference *server = worker->server;
    const weir_inference_options *given = &server->options;
    weir_replica_options options = WEIR_REPLICA_OPTIONS_INIT;
    options.directory = directory;
    options.model = given->model;
    options.run = server->order.join.run;
    options.name = name;
    options.family = given->family;
    options.layout = given->layout;
    options.conversion = given->conversion;
    options.config = given->config;
    options.transport = given->transport;
    options.transport_directory = given->transport_directory;
    options.listen = given->listen;
    options.install = given->install;
    options.n_threads = given->n_threads;
    options.timeout_ms = given->timeout_ms;
    options.hooks = (weir_engine_hooks){ pause_engine, NULL, is_whole, worker };
    if (given->hooks.postprocess != NULL)
        options.hooks.postprocess = take;
    options.progress = progress;
    options.progress_context = worker;
    options.mesh = mesh;
    options.worker = weir_inference_mesh_worker(worker);
    options.experts = given->experts;
    options.agree = agree;
    options.reads_trainers_alone = true; /* a server that stands still holds up no other one */
    options.security = given->security;
    options.wire = server->order.join.kernel_mode ? WEIR_WIRE_KERNEL : WEIR_WIRE_CHECKPOINT;
    return options;
}

/* A trainer that falls silent holds up no join beyond its bound. */
static unsigned bound_of_join(const weir_inference *server)
{
    unsigned left_ms = weir_deadline_left_ms(server->order.deadline);
    unsigned usual_ms = server->options.timeout_ms;
    if (left_ms < WEIR_INFERENCE_GRACE_MS)
        left_ms = WEIR_INFERENCE_GRACE_MS;
    return left_ms < usual_ms ? left_ms : usual_ms;
}

static weir_status join(weir_inference_worker *worker)
{
    weir_replica *replica;
    const weir_inference *server = worker->server;
    const weir_join_wish *wish = &server->order.join; /* stays while the order is done */
    char directory[WEIR_INFERENCE_ADDRESS_BYTES], name[WEIR_NAME_BYTES];
    char mesh[WEIR_INFERENCE_MESH_BYTES];
    weir_inference_address_of(wish, directory);
    snprintf(name, sizeof(name), "%s-dp%u",
             server->options.name != NULL ? server->options.name : wish->server, worker->engine);
    weir_inference_mesh(server, mesh);
    weir_replica_options options = options_of(worker, directory, name, mesh);
    options.timeout_ms = bound_of_join(server);
    weir_status status = weir_replica_open(&options, &replica);
    if (status != WEIR_OK)
        return status;
    weir_directory_client_bound(replica->worker.client, server->options.timeout_ms);
    weir_replica_rebound(replica, server->options.timeout_ms);
    const weir_inference_memory *memory = &worker->memory;
    if (memory->tags != NULL)
        status = weir_replica_register(replica, memory->tensors, memory->tags, memory->n_tensors);
    else
        status = weir_replica_adopt(replica, memory->tensors, memory->n_tensors);
    if (status != WEIR_OK)
        weir_replica_close(replica);
    else
        set_replica(worker, replica);
    return status;
}

static weir_status leave(weir_inference_worker *worker)
{
    weir_replica *replica = worker->replica;
    set_replica(worker, NULL);
    weir_replica_close(replica);
    return WEIR_OK;
}

/* ---- installing ------------------------------------------------------------------------------*/

static void enter_round(weir_inference_worker *worker)
{
    const weir_inference *server = worker->server;
    unsigned asked_ms = server->order.timeout_ms, usual_ms = server->options.timeout_ms;
    worker->ballot = WEIR_BALLOT_LANDED;
    atomic_store(&worker->has_landed, false);
    weir_replica_rebound(worker->replica, asked_ms > usual_ms ? asked_ms : usual_ms);
}

static void keep_before(weir_inference_worker *worker)
{
    weir_inference_before *before = &worker->before;
    before->is_there = !worker->is_unusable;
    before->has_version = worker->has_version;
    before->version = worker->version;
    memcpy(before->version_uid, worker->version_uid, sizeof(before->version_uid));
}

static weir_status install(weir_inference_worker *worker)
{
    weir_inference *server = worker->server;
    enter_round(worker);
    weir_status status =
        weir_replica_install(worker->replica, server->order.update.version, &worker->report);
    weir_vote_leave(server->vote, worker->index, status);
    pthread_mutex_lock(&server->lock);
    if (weir_replica_get_state(worker->replica) == WEIR_REPLICA_UNUSABLE) {
        worker->is_unusable = true;
    } else if (status == WEIR_OK) {
        keep_before(worker);
        worker->is_unusable = false;
        worker->has_version = true;
        worker->version = weir_replica_version(worker->replica);
        memcpy(worker->version_uid, worker->replica->version_uid, sizeof(worker->version_uid));
    }
    pthread_mutex_unlock(&server->lock);
    return status;
}

static weir_status revert(weir_inference_worker *worker)
{
    weir_inference *server = worker->server;
    const weir_inference_before *before = &worker->before;
    enter_round(worker);
    weir_status status = before->is_there
                             ? weir_replica_revert(worker->replica, NULL)
                             : weir_fail(WEIR_ERR_NOT_FOUND, "there is nothing to go back to");
    weir_vote_leave(server->vote, worker->index, status);
    pthread_mutex_lock(&server->lock);
    if (weir_replica_get_state(worker->replica) == WEIR_REPLICA_UNUSABLE) {
        worker->is_unusable = true;
    } else if (status == WEIR_OK) {
        worker->has_version = before->has_version;
        worker->version = before->version;
        memcpy(worker->version_uid, before->version_uid, sizeof(worker->version_uid));
    }
    worker->before.is_there &= status != WEIR_OK && status != WEIR_ERR_NOT_FOUND;
    pthread_mutex_unlock(&server->lock);
    return status;
}

void weir_inference_worker_cancel(weir_inference_worker *worker)
{
    uint64_t now_ns = weir_now_ns();
    if (worker->task != WEIR_TASK_INSTALL || worker->replica == NULL ||
        now_ns < worker->next_cancel_ns)
        return;
    worker->next_cancel_ns = now_ns + CANCEL_AGAIN_NS;
    weir_replica_cancel(worker->replica);
}

/* ---- the thread ------------------------------------------------------------------------------*/

static weir_inference_task await_task(weir_inference_worker *worker)
{
    weir_inference *server = worker->server;
    pthread_mutex_lock(&server->lock);
    while (worker->task == WEIR_TASK_NONE)
        pthread_cond_wait(&server->changed, &server->lock);
    weir_inference_task task = worker->task;
    pthread_mutex_unlock(&server->lock);
    return task;
}

static void end_task(weir_inference_worker *worker, weir_status status)
{
    weir_inference *server = worker->server;
    pthread_mutex_lock(&server->lock);
    worker->result = status;
    worker->next_cancel_ns = 0;
    weir_error_save(&worker->error);
    worker->task = WEIR_TASK_NONE;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

void *weir_inference_work(void *context)
{
    weir_inference_worker *worker = context;
    for (weir_inference_task task = WEIR_TASK_NONE; task != WEIR_TASK_STOP;) {
        task = await_task(worker);
        if (task == WEIR_TASK_JOIN)
            end_task(worker, join(worker));
        else if (task == WEIR_TASK_INSTALL)
            end_task(worker, install(worker));
        else if (task == WEIR_TASK_REVERT)
            end_task(worker, revert(worker));
        else
            end_task(worker, leave(worker));
    }
    return NULL;
}
