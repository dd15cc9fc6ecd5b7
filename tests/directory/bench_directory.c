/* SPDX-License-Identifier: Apache-2.0 */
/* bench_directory.c - a fleet's load on one directory in a process of its own: registered workers,
 * calls that wait, a steady rate of requests, and a version of many shards.
 *
 *     bench_directory [--workers N] [--waits N] [--rate N] [--seconds N] [--shards N] [--readers N]
 *                     [--connect-all] [--bounds]
 *
 * --connect-all: each worker has a connection of its own, and each request goes over another one.
 * Else there are a few connections, and one for each wait.
 *
 * Prints one JSON object; memory is the directory's process', per worker. Latencies count from when
 * a request was due, not from when it was sent, so a slow answer is not hidden by the requests that
 * it held up. --bounds: exit 1 beyond generous ones. */
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "directory.pb-c.h"
#include "directory/bench_processes.h"
#include "directory/client_core.h"
#include "directory/client_entry.h"
#include "health.pb-c.h"
#include "p2p.pb-c.h"
#include "refit.pb-c.h"
#include "rpc/rpc.h"
#include "weir/weir.h"

#define N_CLIENTS 4
#define N_MODELS 100
#define TIMEOUT_MS 30000
#define KINDS 3
#define MOST_SAMPLES (1u << 20)

typedef struct settings {
    unsigned workers, waits, rate, seconds, shards, readers;
    bool connect_all, bounds;
} settings;

static settings set = {
    .workers = 10000, .waits = 1000, .rate = 2000, .seconds = 10, .shards = 1024, .readers = 16
};
static char address[64];
static bench_process directory_process, keeper;
/* Of each worker, NULL: it has none; workers from n_own on are the keeper's. */
static weir_directory_client **clients;
static unsigned n_own;
static const char *const kind_names[KINDS] = { "list", "publish", "status" };

static void start(pthread_t *thread, void *(*work)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, (size_t)512 << 10);
    if (pthread_create(thread, &attributes, work, argument) != 0)
        die("pthread_create");
    pthread_attr_destroy(&attributes);
}

/* ---- latencies -------------------------------------------------------------------------------*/

typedef struct samples {
    double *ms;
    size_t n;
} samples;

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const samples *of, double part)
{
    if (of->n == 0)
        return 0;
    return of->ms[(size_t)((double)(of->n - 1) * part)];
}

/* ---- workers ---------------------------------------------------------------------------------*/

static void fill_record(weir_source_record *record, unsigned number)
{
    memset(record, 0, sizeof(*record));
    snprintf(record->worker_id, sizeof(record->worker_id), "worker-%05u-0", number);
    snprintf(record->model, sizeof(record->model), "model-%u", number % N_MODELS);
    strcpy(record->run, "run");
    strcpy(record->role, "inference_replica");
    strcpy(record->endpoint, "10.0.0.1:50000");
    strcpy(record->layout_signature, "0123456789abcdef");
    record->n_ranks = 1;
    record->status = WEIR_SOURCE_READY;
    record->version = 1;
}

typedef enum step { CONNECT, REGISTER, ENTER, STEPS } step;

typedef struct range {
    unsigned first, end, stride;
    step step;
} range;

static void connect_worker(weir_directory_client **client)
{
    const ModelExpress__Health__HealthRequest request = MODEL_EXPRESS__HEALTH__HEALTH_REQUEST__INIT;
    const ProtobufCMessage *answer;
    must(weir_directory_client_open(address, TIMEOUT_MS, client), "open");
    must(weir_client_call(*client, &model_express__health__health_service__descriptor, "GetHealth",
                          &request.base, &answer),
         "health");
}

static void take_step(step which, weir_directory_client **client, unsigned number)
{
    weir_source_record record;
    char id[WEIR_ID_BYTES];
    fill_record(&record, number);
    if (which == CONNECT)
        connect_worker(client);
    else if (which == ENTER)
        must(weir_directory_publish_source(*client, &record, id), "publish");
    else
        must(weir_directory_register_worker(*client, record.worker_id, WEIR_ROLE_GENERATOR,
                                            record.model, 3600),
             "register");
}

static void *add_workers(void *argument)
{
    const range *part = argument;
    weir_directory_client *shared = NULL;
    if (!set.connect_all)
        must(weir_directory_client_open(address, TIMEOUT_MS, &shared), "open");
    for (unsigned i = part->first; i < part->end; i += part->stride)
        take_step(part->step, set.connect_all ? &clients[i] : &shared, i);
    weir_directory_client_close(shared);
    return NULL;
}

static void run_adders(step which, unsigned first, unsigned end)
{
    pthread_t threads[N_CLIENTS];
    range parts[N_CLIENTS];
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        parts[i] = (range){ first + i, end, N_CLIENTS, which };
        start(&threads[i], add_workers, &parts[i]);
    }
    for (unsigned i = 0; i < N_CLIENTS; i++)
        pthread_join(threads[i], NULL);
}

/* Keeper process: takes its workers through the steps that it is told. */
static int keep_workers(int fd)
{
    unsigned char which;
    take_all_descriptors();
    must_be(read(fd, address, sizeof(address)) > 0, "read");
    while (read(fd, &which, 1) == 1) {
        run_adders((step)which, n_own, set.workers);
        must_be(write(fd, &which, 1) == 1, "write");
    }
    return 0; /* without closing each: the process' end does it */
}

/* Gives the bytes that each took of the directory. */
static double run_step(step which)
{
    unsigned char byte = (unsigned char)which;
    size_t before = resident_bytes_of(directory_process.pid);
    bool has_keeper = n_own < set.workers;
    if (has_keeper)
        must_be(write(keeper.fd, &byte, 1) == 1, "write");
    run_adders(which, 0, n_own);
    if (has_keeper)
        must_be(read(keeper.fd, &byte, 1) == 1, "the keeper ended");
    size_t after = resident_bytes_of(directory_process.pid);
    return after > before ? (double)(after - before) / set.workers : 0;
}

/* The directory's part of a processor while nobody asks it for anything. */
static double measure_idle_cpu(void)
{
    enum { SECONDS = 3 };
    double before = cpu_seconds_of(directory_process.pid);
    sleep(SECONDS);
    return (cpu_seconds_of(directory_process.pid) - before) / SECONDS;
}

/* ---- waits -----------------------------------------------------------------------------------*/

typedef struct waiter {
    pthread_t thread;
    unsigned number;
    const char *model; /* NULL: of its worker */
    uint64_t answered_ns;
    bool found;
} waiter;

static atomic_uint n_asking;

static void *wait_for_version(void *argument)
{
    waiter *self = argument;
    weir_source_record record;
    weir_directory_client *client, *own = NULL;
    fill_record(&record, self->number);
    bool has_client = set.connect_all && self->model == NULL;
    if (!has_client)
        must(weir_directory_client_open(address, TIMEOUT_MS, &own), "open");
    client = has_client ? clients[self->number] : own;
    Weir__Directory__AcquireVersionRequest request = WEIR__DIRECTORY__ACQUIRE_VERSION_REQUEST__INIT;
    request.model_name = self->model != NULL ? (char *)self->model : record.model;
    request.run = (char *)"run";
    request.worker_id = record.worker_id;
    request.lowest = 1;
    request.highest = UINT64_MAX;
    request.ttl_seconds = 600;
    request.timeout_ms = 300000;
    const ProtobufCMessage *answer;
    atomic_fetch_add(&n_asking, 1);
    must(weir_client_call_for(client, 300000, &weir__directory__directory_service__descriptor,
                              "AcquireVersion", &request.base, &answer),
         "acquire");
    self->answered_ns = weir_now_ns();
    self->found = ((const Weir__Directory__AcquireVersionResponse *)answer)->found;
    weir_directory_client_close(own);
    return NULL;
}

static void start_waiters(waiter *waiters, unsigned n, const char *model)
{
    atomic_store(&n_asking, 0);
    for (unsigned i = 0; i < n; i++) {
        waiters[i].model = model;
        start(&waiters[i].thread, wait_for_version, &waiters[i]);
    }
    while (atomic_load(&n_asking) < n)
        weir_sleep_ms(1);
    weir_sleep_ms(200); /* the last request is on its way */
}

/* When the last one was answered. */
static uint64_t join_waiters(waiter *waiters, unsigned n)
{
    uint64_t last_ns = 0;
    for (unsigned i = 0; i < n; i++) {
        pthread_join(waiters[i].thread, NULL);
        if (!waiters[i].found)
            die("a wait ended without a version");
        if (waiters[i].answered_ns > last_ns)
            last_ns = waiters[i].answered_ns;
    }
    return last_ns;
}

/* ---- versions --------------------------------------------------------------------------------*/

static void register_as(weir_directory_client *client, const char *id, int role, const char *model)
{
    must(weir_directory_register_worker(client, id, (weir_worker_role)role, model, 3600),
         "register");
}

/* Gives when the call returned. */
static uint64_t publish_shard(weir_directory_client *client, const char *model,
                              const char *const *slots, unsigned n_slots, unsigned rank)
{
    weir_source_record source;
    weir_shard_record shard = { .n_tensors = 1, .n_bytes = 1 };
    weir_publish_answer answer;
    fill_record(&source, 0);
    snprintf(source.worker_id, sizeof(source.worker_id), "trainer-%.100s-%u", model, rank);
    snprintf(source.model, sizeof(source.model), "%s", model);
    strcpy(source.role, "trainer");
    source.rank = rank;
    source.n_ranks = n_slots;
    snprintf(shard.slot, sizeof(shard.slot), "%s", slots[rank]);
    strcpy(shard.worker_id, source.worker_id);
    strcpy(shard.manifest_digest,
           "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    strcpy(shard.manifest_endpoint, source.endpoint);
    strcpy(shard.transport, "ucx");
    register_as(client, source.worker_id, WEIR_ROLE_TRAINER, model);
    const weir_publish_request request = {
        .shard = &shard, .source = &source, .slots = slots, .n_slots = n_slots, .trace_id = ""
    };
    must(weir_directory_publish_version_shard(client, &request, &answer), "publish_version_shard");
    uint64_t now_ns = weir_now_ns();
    bool is_ready = answer.version.state == WEIR_VERSION_READY;
    if (is_ready != (rank + 1 == n_slots))
        die("READY is not with the last shard");
    return now_ns;
}

typedef struct version_figures {
    double publish_ms, ready_ms, answered_ms;
} version_figures;

/* A version of many shards, and replicas that wait for it. */
static version_figures run_version(void)
{
    weir_directory_client *client;
    char(*names)[16] = calloc(set.shards, sizeof(*names));
    const char **slots = calloc(set.shards, sizeof(*slots));
    waiter *readers = calloc(set.readers, sizeof(*readers));
    weir_source_record record;
    must(weir_directory_client_open(address, TIMEOUT_MS, &client), "open");
    for (unsigned i = 0; i < set.shards; i++) {
        snprintf(names[i], sizeof(names[i]), "rank-%u", i);
        slots[i] = names[i];
    }
    for (unsigned i = 0; i < set.readers; i++) {
        readers[i].number = 1000000 + i;
        fill_record(&record, readers[i].number);
        register_as(client, record.worker_id, WEIR_ROLE_GENERATOR, "large");
    }
    start_waiters(readers, set.readers, "large");
    uint64_t begun_ns = weir_now_ns();
    for (unsigned i = 0; i + 1 < set.shards; i++)
        publish_shard(client, "large", slots, set.shards, i);
    uint64_t last_ns = weir_now_ns();
    uint64_t ready_ns = publish_shard(client, "large", slots, set.shards, set.shards - 1);
    uint64_t answered_ns = join_waiters(readers, set.readers);
    weir_directory_client_close(client);
    free(names), free(slots), free(readers);
    return (version_figures){ (double)(last_ns - begun_ns) / 1e6,
                              (double)(ready_ns - last_ns) / 1e6,
                              (double)(answered_ns - last_ns) / 1e6 };
}

/* One version of one shard for each model that calls wait for; until the last is answered. */
static double release_waits(waiter *waiters)
{
    static const char *const slots[] = { "rank-0" };
    weir_directory_client *client;
    char model[32];
    if (set.waits == 0)
        return 0;
    must(weir_directory_client_open(address, TIMEOUT_MS, &client), "open");
    uint64_t begun_ns = weir_now_ns();
    for (unsigned i = 0; i < N_MODELS; i++) {
        snprintf(model, sizeof(model), "model-%u", i);
        publish_shard(client, model, slots, 1, 0);
    }
    uint64_t answered_ns = join_waiters(waiters, set.waits);
    weir_directory_client_close(client);
    return (double)(answered_ns - begun_ns) / 1e6;
}

/* ---- a steady rate ---------------------------------------------------------------------------*/

typedef struct load {
    pthread_t thread;
    unsigned number;
    samples kinds[KINDS];
} load;

/* The entry's id is known from publishing it. */
static void make_request(weir_directory_client *client, unsigned kind, unsigned number, char *id)
{
    weir_source_record record;
    weir_source_ref refs[16];
    size_t n;
    fill_record(&record, number % set.workers);
    if (kind == 0)
        must(weir_directory_list_sources(client, record.model, WEIR_SOURCE_READY, 1, refs, 16, &n),
             "list");
    else if (kind == 1)
        must(weir_directory_publish_source(client, &record, id), "publish");
    else
        must(weir_directory_update_status(client, id, record.worker_id, 0, WEIR_SOURCE_READY),
             "status");
}

/* Of a worker that does not wait, and that no other thread of the load speaks for. */
static weir_directory_client *worker_client(unsigned thread, unsigned i)
{
    unsigned n = (n_own - set.waits) / N_CLIENTS;
    return clients[set.waits + (uint64_t)i * 7919 % n * N_CLIENTS + thread];
}

static void *make_load(void *argument)
{
    load *self = argument;
    weir_directory_client *client = NULL;
    char id[WEIR_ID_BYTES] = "";
    if (!set.connect_all)
        must(weir_directory_client_open(address, TIMEOUT_MS, &client), "open");
    unsigned n = set.rate * set.seconds / N_CLIENTS;
    uint64_t begun_ns = weir_now_ns(), step_ns = 1000000000ull * N_CLIENTS / set.rate;
    for (unsigned i = 0; i < n; i++) {
        uint64_t due_ns = begun_ns + i * step_ns + self->number * step_ns / N_CLIENTS;
        uint64_t now_ns = weir_now_ns();
        if (now_ns < due_ns)
            usleep((useconds_t)((due_ns - now_ns) / 1000));
        unsigned kind = i % KINDS; /* list, publish, and the status of what was published */
        make_request(client != NULL ? client : worker_client(self->number, i), kind,
                     i / KINDS * 7919 + self->number, id);
        self->kinds[kind].ms[self->kinds[kind].n++] = (double)(weir_now_ns() - due_ns) / 1e6;
    }
    weir_directory_client_close(client);
    return NULL;
}

static void run_load(samples totals[KINDS])
{
    static load loads[N_CLIENTS];
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        loads[i].number = i;
        for (unsigned kind = 0; kind < KINDS; kind++)
            loads[i].kinds[kind].ms = calloc(MOST_SAMPLES / KINDS / N_CLIENTS, sizeof(double));
        start(&loads[i].thread, make_load, &loads[i]);
    }
    for (unsigned kind = 0; kind < KINDS; kind++)
        totals[kind] = (samples){ calloc(MOST_SAMPLES, sizeof(double)), 0 };
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        pthread_join(loads[i].thread, NULL);
        for (unsigned kind = 0; kind < KINDS; kind++) {
            memcpy(totals[kind].ms + totals[kind].n, loads[i].kinds[kind].ms,
                   loads[i].kinds[kind].n * sizeof(double));
            totals[kind].n += loads[i].kinds[kind].n;
            free(loads[i].kinds[kind].ms);
        }
    }
    for (unsigned kind = 0; kind < KINDS; kind++)
        qsort(totals[kind].ms, totals[kind].n, sizeof(double), compare);
}

/* ---- all of it -------------------------------------------------------------------------------*/

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        { "workers", 1, NULL, 0 }, { "waits", 1, NULL, 1 },       { "rate", 1, NULL, 2 },
        { "seconds", 1, NULL, 3 }, { "shards", 1, NULL, 4 },      { "readers", 1, NULL, 5 },
        { "bounds", 0, NULL, 6 },  { "connect-all", 0, NULL, 7 }, { NULL, 0, NULL, 0 }
    };
    unsigned *const values[] = { &set.workers, &set.waits,  &set.rate,
                                 &set.seconds, &set.shards, &set.readers };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 6)
            set.bounds = true;
        else if (option == 7)
            set.connect_all = true;
        else if (option >= 0 && option < 6)
            *values[option] = (unsigned)strtoul(optarg, NULL, 10);
        else
            exit(2);
    }
    if (set.workers < N_MODELS || set.rate == 0 || set.shards == 0 || set.waits > set.workers ||
        (uint64_t)set.rate * set.seconds > MOST_SAMPLES / 2) {
        fprintf(stderr, "bench_directory: at least %d workers, as many as waits\n", N_MODELS);
        exit(2);
    }
}

static int judge(const samples totals[KINDS], const version_figures *version)
{
    bool is_bad = version->ready_ms > 1000 || version->answered_ms > 5000;
    for (unsigned kind = 0; kind < KINDS; kind++)
        is_bad |= percentile(&totals[kind], 0.5) > 200;
    return set.bounds && is_bad;
}

/* Each process has what fits into its descriptors; waits and requests are of this one's workers. */
static void start_processes(void)
{
    unsigned most = (unsigned)(take_all_descriptors() - OTHER_FDS) / FDS_PER_CLIENT;
    n_own = set.connect_all && set.workers > most ? most : set.workers;
    clients = calloc(set.workers, sizeof(*clients));
    if (set.workers - n_own > most || n_own < set.waits + N_CLIENTS) {
        fprintf(stderr, "bench_directory: too few descriptors for %u workers\n", set.workers);
        exit(2);
    }
    directory_process = start_process(run_directory);
    if (n_own < set.workers)
        keeper = start_process(keep_workers);
    must_be(read(directory_process.fd, address, sizeof(address)) > 0, "the directory ended");
    if (n_own < set.workers)
        must_be(write(keeper.fd, address, sizeof(address)) > 0, "write");
}

static void end_processes(void)
{
    if (n_own < set.workers)
        end_process(&keeper);
    for (unsigned i = 0; i < n_own; i++)
        weir_directory_client_close(clients[i]);
    free(clients);
    end_process(&directory_process);
}

static void print_head(const double bytes[STEPS], double idle_cpu)
{
    printf("{\"workers\":%u,\"waits\":%u,\"rate\":%u", set.workers, set.waits, set.rate);
    if (set.connect_all)
        printf(",\"connections\":%u,\"connection_bytes\":%.0f,\"idle_cpu\":%.4f", set.workers,
               bytes[CONNECT], idle_cpu);
    printf(",\"worker_bytes\":%.0f,\"entry_bytes\":%.0f", bytes[REGISTER], bytes[ENTER]);
}

int main(int argc, char **argv)
{
    samples totals[KINDS];
    double bytes[STEPS] = { 0 };
    read_options(argc, argv);
    start_processes();
    waiter *waiters = calloc(set.waits + 1, sizeof(*waiters));
    for (step each = set.connect_all ? CONNECT : REGISTER; each < STEPS; each++)
        bytes[each] = run_step(each);
    for (unsigned i = 0; i < set.waits; i++)
        waiters[i].number = i;
    start_waiters(waiters, set.waits, NULL);
    double idle_cpu = set.connect_all ? measure_idle_cpu() : 0;
    run_load(totals);
    version_figures version = run_version();
    double released_ms = release_waits(waiters);
    end_processes();
    print_head(bytes, idle_cpu);
    for (unsigned kind = 0; kind < KINDS; kind++)
        printf(",\"%s\":{\"n\":%zu,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f}",
               kind_names[kind], totals[kind].n, percentile(&totals[kind], 0.5),
               percentile(&totals[kind], 0.99), percentile(&totals[kind], 1));
    printf(",\"shards\":%u,\"publish_ms\":%.1f,\"ready_ms\":%.2f,\"readers\":%u,"
           "\"readers_answered_ms\":%.2f,\"waits_released_ms\":%.2f}\n",
           set.shards, version.publish_ms, version.ready_ms, set.readers, version.answered_ms,
           released_ms);
    int result = judge(totals, &version);
    for (unsigned kind = 0; kind < KINDS; kind++)
        free(totals[kind].ms);
    free(waiters);
    return result;
}
