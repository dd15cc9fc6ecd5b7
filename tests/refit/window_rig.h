/* SPDX-License-Identifier: Apache-2.0 */
/* window_rig.h - trainer ranks of a mesh whose versions pass through windows, and workers of
 * engines: all in one process, each in a thread of its own while it publishes, waits or installs.
 */
#ifndef WEIR_TESTS_WINDOW_RIG_H
#define WEIR_TESTS_WINDOW_RIG_H

#include "refit/refit_rig.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "refit/replica.h"
#include "refit/window.h"

#define WINDOW_BYTES ((uint64_t)192 << 10)
#define MAX_PEERS 8
#define SHORT_MS 700

typedef struct peer {
    pthread_t thread;
    weir_trainer *trainer; /* or: */
    weir_replica *replica;
    char name[16];
    uint32_t worker;
    uint64_t version;
    unsigned n_replicas, timeout_ms;
    weir_status status;
    char line[WEIR_ERROR_TEXT];
    weir_report report;
    double took_s;
    atomic_bool is_over;
} peer;

typedef struct stage {
    rig *r;
    const char *trainer_mesh, *replica_mesh;
    uint32_t n_ranks;
    peer ranks[MAX_PEERS], workers[MAX_PEERS];
    size_t n_workers;
} stage;

/* ---- open and close --------------------------------------------------------------------------*/

/* As rig_open_as(), without its trainers: they are opened one by one. */
static inline stage *open_stage(const rig *wish, const char *trainer_mesh, uint32_t n_ranks,
                                const char *replica_mesh)
{
    stage *s = calloc(1, sizeof(*s));
    rig *r = calloc(1, sizeof(*r));
    assert_true(s != NULL && r != NULL);
    *r = *wish;
    rig_write_config(r);
    rig_model_open(r);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_ok(weir_directory_open(&options, &r->directory));
    s->r = r;
    s->trainer_mesh = trainer_mesh;
    s->replica_mesh = replica_mesh;
    s->n_ranks = n_ranks;
    return s;
}

static inline weir_trainer_options trainer_options(const stage *s, uint32_t rank)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.directory = weir_directory_address(s->r->directory);
    options.model = "model";
    options.rank = rank;
    options.family = s->r->family;
    options.conversion = s->r->conversion;
    options.config = s->r->config_path;
    options.n_threads = 1;
    options.timeout_ms = 10 * RIG_TIMEOUT_MS;
    options.mesh = s->trainer_mesh;
    options.replica_mesh = s->r->wire == WEIR_WIRE_KERNEL ? s->replica_mesh : NULL;
    options.wire = s->r->wire;
    options.delivery = s->r->delivery;
    options.window_bytes = s->r->window_bytes;
    return options;
}

static inline void open_trainer(stage *s, uint32_t rank)
{
    weir_trainer_options options = trainer_options(s, rank);
    assert_ok(weir_trainer_open(&options, &s->ranks[rank].trainer));
}

static inline void open_trainers(stage *s)
{
    for (uint32_t rank = 0; rank < s->n_ranks; rank++)
        open_trainer(s, rank);
}

static inline peer *add_worker(stage *s, const char *name, uint32_t number, weir_install_mode mode)
{
    peer *worker = &s->workers[s->n_workers++];
    snprintf(worker->name, sizeof(worker->name), "%s", name);
    weir_replica_options options = rig_replica_options(s->r, worker->name, mode);
    options.mesh = s->replica_mesh;
    options.worker = worker->worker = number;
    options.timeout_ms = 10 * RIG_TIMEOUT_MS;
    assert_ok(weir_replica_open(&options, &worker->replica));
    assert_ok(weir_replica_allocate(worker->replica));
    return worker;
}

static inline void close_stage(stage *s)
{
    for (size_t w = 0; w < s->n_workers; w++)
        weir_replica_close(s->workers[w].replica);
    for (uint32_t rank = 0; rank < s->n_ranks; rank++)
        weir_trainer_close(s->ranks[rank].trainer);
    rig_close(s->r); /* which has no trainers */
    free(s);
}

/* ---- threads ---------------------------------------------------------------------------------*/

static inline void finish(peer *p, weir_status status, double begun_s)
{
    p->status = status;
    p->took_s = weir_now_s() - begun_s;
    snprintf(p->line, sizeof(p->line), "%s", status != WEIR_OK ? weir_last_error() : "");
    p->is_over = true;
}

/* Publishes the version, unless it has, and sends it, where it is for anybody. */
static inline void *run_rank(void *context)
{
    peer *p = context;
    double begun_s = weir_now_s();
    weir_alloc_uncount_thread(); /* memory that conversions need is a thread's own */
    weir_status status = WEIR_OK;
    if (!p->trainer->has_published || p->trainer->last_version < p->version)
        status = weir_trainer_publish(p->trainer, p->version, &p->report);
    if (status == WEIR_OK && p->n_replicas > 0)
        status = weir_trainer_wait(p->trainer, p->version, p->n_replicas, p->timeout_ms);
    finish(p, status, begun_s);
    return NULL;
}

static inline void *run_worker(void *context)
{
    peer *p = context;
    double begun_s = weir_now_s();
    finish(p, weir_replica_install(p->replica, p->version, &p->report), begun_s);
    return NULL;
}

static inline void start_rank(peer *p, unsigned n_replicas, unsigned timeout_ms)
{
    p->n_replicas = n_replicas;
    p->timeout_ms = timeout_ms;
    p->is_over = false;
    assert_int_equal(pthread_create(&p->thread, NULL, run_rank, p), 0);
}

static inline void start_ranks(stage *s, unsigned version, unsigned n_replicas, unsigned timeout_ms)
{
    rig_fill(&s->r->model, version);
    for (uint32_t rank = 0; rank < s->n_ranks; rank++) {
        peer *p = &s->ranks[rank];
        assert_ok(weir_trainer_register(p->trainer, s->r->model.tensors, s->r->model.n));
        p->version = version;
    }
    for (uint32_t rank = 0; rank < s->n_ranks; rank++)
        start_rank(&s->ranks[rank], n_replicas, timeout_ms);
}

static inline void start_worker(peer *worker, uint64_t version)
{
    worker->version = version;
    assert_int_equal(pthread_create(&worker->thread, NULL, run_worker, worker), 0);
}

static inline void join(peer *p)
{
    assert_int_equal(pthread_join(p->thread, NULL), 0);
}

static inline void join_ok(peer *p)
{
    join(p);
    if (p->status != WEIR_OK)
        fail_msg("version %" PRIu64 ": %s: %s", p->version, weir_status_name(p->status), p->line);
}

static inline void join_error(peer *p, weir_status status, const char *line)
{
    join(p);
    if (p->status != status || strstr(p->line, line) == NULL)
        fail_msg("version %" PRIu64 ": got %s: '%s', wanted %s: '%s'", p->version,
                 weir_status_name(p->status), p->line, weir_status_name(status), line);
}

/* One version to all workers, of which there are n_replicas engines. */
static inline void refit(stage *s, unsigned version, unsigned n_replicas)
{
    start_ranks(s, version, n_replicas, 0);
    for (size_t w = 0; w < s->n_workers; w++)
        start_worker(&s->workers[w], version);
    for (uint32_t rank = 0; rank < s->n_ranks; rank++)
        join_ok(&s->ranks[rank]);
    for (size_t w = 0; w < s->n_workers; w++)
        join_ok(&s->workers[w]);
}

/* Against a conversion of the whole model in this process. */
static inline void expect_verified(const stage *s, const peer *worker, uint64_t version)
{
    weir_verify_options options = WEIR_VERIFY_OPTIONS_INIT;
    weir_verify_report report;
    options.directory = weir_directory_address(s->r->directory);
    options.model = "model";
    options.replica = worker->name;
    options.family = s->r->family;
    options.conversion = s->r->conversion;
    options.config = s->r->config_path;
    options.sources = s->r->model.tensors;
    options.n_sources = s->r->model.n;
    options.n_threads = 1;
    options.timeout_ms = 10 * RIG_TIMEOUT_MS;
    options.mesh = s->replica_mesh;
    options.worker = worker->worker;
    assert_ok(weir_verify(&options, &report));
    if (report.n_different != 0)
        fail_msg("%s: %s", worker->name, report.first_difference);
    assert_int_equal(report.version, version);
}

#endif
