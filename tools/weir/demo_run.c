/* SPDX-License-Identifier: Apache-2.0 */
/* demo_run.c - the demo's processes: starts them, feeds them version by version, checks each.
 *
 * All of them are this very program under its public verbs; the demo knows nothing that a user's
 * own script could not.
 */
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "demo.h"

#define START_TIMEOUT_S 60.0
#define STEP_TIMEOUT_S 300.0

/* ---- arguments -------------------------------------------------------------------------------*/

/* What every flow verb of this run is told. */
static void add_common(weir_arguments *list, const weir_demo *demo)
{
    const weir_demo_options *options = demo->options;
    weir_arguments_add(list, "--directory", demo->directory_address);
    weir_arguments_add(list, "--model", "demo");
    weir_arguments_add(list, "--config", demo->config);
    weir_arguments_add(list, "--family", options->family);
    weir_arguments_add(list, "--layout", options->layout);
    weir_arguments_add(list, "--conversion", options->conversion);
    weir_arguments_add(list, "--transport-directory", demo->share);
    weir_arguments_add(list, "--replica-mesh",
                       demo->engine_mesh[0] != '\0' ? demo->engine_mesh : NULL);
    weir_arguments_add(list, "--replica-experts", options->experts);
    weir_arguments_add(list, NULL, "--json");
}

/* Which worker of its engine a process is. */
static int worker_of(const weir_demo *demo, int index)
{
    return index % (demo->n_workers / demo->n_replicas);
}

/* ---- checkpoints -----------------------------------------------------------------------------*/

static void step_dir(const weir_demo *demo, uint64_t version, char *path, size_t path_bytes)
{
    snprintf(path, path_bytes, "%s/step-%llu", demo->work_dir, (unsigned long long)version);
}

/* Version N is the checkpoint after N - 1 training steps. */
static bool make_checkpoint(weir_demo *demo, uint64_t version)
{
    const weir_demo_options *options = demo->options;
    char path[640], step[24], seed[24];
    weir_arguments list = { { NULL }, 0 };
    int code;
    step_dir(demo, version, path, sizeof(path));
    snprintf(step, sizeof(step), "%llu", (unsigned long long)(version - 1));
    snprintf(seed, sizeof(seed), "%llu", (unsigned long long)options->seed);
    weir_arguments_add(&list, NULL, "weir");
    weir_arguments_add(&list, NULL, "synth");
    if (options->model_dir != NULL) {
        weir_arguments_add(&list, "--from", options->model_dir);
    } else {
        weir_arguments_add(&list, "--family", options->family);
        weir_arguments_add(&list, "--preset", options->preset);
        weir_arguments_add(&list, "--naming", options->naming);
    }
    weir_arguments_add(&list, "--seed", seed);
    weir_arguments_add(&list, "--step", step);
    weir_arguments_add(&list, "-o", path);
    weir_arguments_add(&list, NULL, "--json");
    json_t *made = weir_child_run_json("synth", list.items, STEP_TIMEOUT_S, &code);
    json_decref(made);
    if (made == NULL || code != 0)
        return false;
    demo->n_made = version;
    return true;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info, (void)type, (void)where;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void drop_checkpoint(const weir_demo *demo, uint64_t version)
{
    char path[640];
    step_dir(demo, version, path, sizeof(path));
    if (!demo->options->keep)
        remove_tree(path);
}

/* ---- processes -------------------------------------------------------------------------------*/

static bool start_directory(weir_demo *demo)
{
    weir_arguments list = { { NULL }, 0 };
    weir_arguments_add(&list, NULL, "weir");
    weir_arguments_add(&list, NULL, "serve");
    weir_arguments_add(&list, "--listen", "127.0.0.1:0");
    weir_arguments_add(&list, NULL, "--json");
    if (!weir_child_start(&demo->directory, "directory", list.items))
        return false;
    json_t *hello = weir_child_read_json(&demo->directory, START_TIMEOUT_S);
    const char *address = json_string_value(json_object_get(hello, "address"));
    if (address != NULL)
        snprintf(demo->directory_address, sizeof(demo->directory_address), "%s", address);
    json_decref(hello);
    return address != NULL;
}

static bool start_trainer(weir_demo *demo, int rank)
{
    char name[32], rank_text[16], n_ranks[16], n_replicas[16];
    weir_arguments list = { { NULL }, 0 };
    snprintf(name, sizeof(name), "trainer rank %d", rank);
    snprintf(rank_text, sizeof(rank_text), "%d", rank);
    snprintf(n_ranks, sizeof(n_ranks), "%d", demo->n_trainers);
    weir_arguments_add(&list, NULL, "weir");
    weir_arguments_add(&list, NULL, "publish");
    weir_arguments_add(&list, NULL, "--follow");
    weir_arguments_add(&list, "--version", "1");
    weir_arguments_add(&list, "--rank", rank_text);
    weir_arguments_add(&list, "--ranks", n_ranks);
    weir_arguments_add(&list, "--mesh", demo->options->trainer_mesh);
    weir_arguments_add(&list, "--expert-owners", demo->options->owners);
    weir_arguments_add(&list, "--transport", demo->options->transport);
    weir_arguments_add(&list, "--device", demo->options->device);
    weir_arguments_add(&list, "--delivery", "pull");
    weir_arguments_add(&list, "--window", demo->options->window);
    weir_arguments_add(&list, "--wire", demo->options->mode);
    bool whole = strcmp(demo->options->mode, "checkpoint") == 0; /* each worker reads for itself */
    snprintf(n_replicas, sizeof(n_replicas), "%d", whole ? demo->n_workers : demo->n_replicas);
    weir_arguments_add(&list, "--replicas", demo->options->window != NULL ? n_replicas : NULL);
    add_common(&list, demo);
    return weir_child_start(&demo->trainers[rank], name, list.items);
}

static bool start_worker(weir_demo *demo, int index)
{
    char name[64], worker[16];
    weir_arguments list = { { NULL }, 0 };
    int per_replica = demo->n_workers / demo->n_replicas;
    snprintf(worker, sizeof(worker), "%d", worker_of(demo, index));
    if (per_replica == 1)
        snprintf(name, sizeof(name), "replica-%d", index);
    else
        snprintf(name, sizeof(name), "replica-%d-worker-%s", index / per_replica, worker);
    weir_arguments_add(&list, NULL, "weir");
    weir_arguments_add(&list, NULL, "receive");
    weir_arguments_add(&list, NULL, "--follow");
    weir_arguments_add(&list, "--name", name);
    weir_arguments_add(&list, "--install", demo->options->install);
    weir_arguments_add(&list, "--worker", worker);
    weir_arguments_add(&list, "--wire", demo->options->mode);
    weir_arguments_add(&list, "--device", demo->options->device);
    add_common(&list, demo);
    return weir_child_start(&demo->workers[index], name, list.items);
}

static bool make_work_dir(weir_demo *demo)
{
    const char *parent = getenv("TMPDIR");
    if (demo->options->work_dir != NULL) {
        snprintf(demo->work_dir, sizeof(demo->work_dir), "%s", demo->options->work_dir);
        if (mkdir(demo->work_dir, 0777) == 0 || errno == EEXIST)
            return true;
    } else {
        snprintf(demo->work_dir, sizeof(demo->work_dir), "%s/weir-demo-XXXXXX",
                 parent != NULL ? parent : "/tmp");
        if (mkdtemp(demo->work_dir) != NULL)
            return true;
    }
    weir_cli_error("cannot make %s: %s", demo->work_dir, strerror(errno));
    demo->work_dir[0] = '\0';
    return false;
}

bool weir_demo_begin(weir_demo *demo)
{
    if (!make_work_dir(demo) || !make_checkpoint(demo, 1) || !start_directory(demo))
        return false;
    snprintf(demo->share, sizeof(demo->share), "%s/share", demo->work_dir);
    if (mkdir(demo->share, 0777) != 0) {
        weir_cli_error("cannot make %s: %s", demo->share, strerror(errno));
        demo->share[0] = '\0';
        return false;
    }
    step_dir(demo, 1, demo->config, sizeof(demo->config) - 16);
    strcat(demo->config, "/config.json");
    for (int i = 0; i < demo->n_trainers; i++) {
        if (!start_trainer(demo, i))
            return false;
    }
    for (int i = 0; i < demo->n_workers; i++) {
        if (!start_worker(demo, i))
            return false;
    }
    return true;
}

void weir_demo_end(weir_demo *demo)
{
    for (int i = 0; i < demo->n_workers; i++)
        weir_child_end(&demo->workers[i]);
    for (int i = 0; i < demo->n_trainers; i++)
        weir_child_end(&demo->trainers[i]);
    weir_child_end(&demo->directory);
    if (demo->options->keep || demo->work_dir[0] == '\0')
        return;
    for (uint64_t version = 1; version <= demo->n_made; version++)
        drop_checkpoint(demo, version);
    if (demo->share[0] != '\0')
        remove_tree(demo->share);
    if (demo->options->work_dir == NULL)
        remove_tree(demo->work_dir);
}

/* ---- one version -----------------------------------------------------------------------------*/

static double real_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static void take_seconds(const json_t *report, weir_demo_version *into)
{
    const json_t *seconds = json_object_get(report, "seconds");
    for (int stop = 0; stop < WEIR_N_STOPS; stop++) {
        double s = real_of(seconds, weir_stop_name((weir_stop)stop));
        if (s > into->seconds[stop])
            into->seconds[stop] = s;
    }
}

static void take_memory(const json_t *report, uint64_t *most_bytes)
{
    uint64_t n_bytes = (uint64_t)real_of(report, "memory_bytes");
    *most_bytes = n_bytes > *most_bytes ? n_bytes : *most_bytes;
}

static void take_counters(const json_t *report, weir_counters *into)
{
    const json_t *counters = json_object_get(report, "counters");
    into->allocations += (uint64_t)real_of(counters, "allocations");
    into->registrations += (uint64_t)real_of(counters, "registrations");
    into->plans += (uint64_t)real_of(counters, "plans");
    into->connections += (uint64_t)real_of(counters, "connections");
}

/* The child's next report, which must be of `event` and this version. */
static json_t *read_report(weir_child *child, const char *event, uint64_t version)
{
    json_t *report = weir_child_read_json(child, STEP_TIMEOUT_S);
    const char *said = json_string_value(json_object_get(report, "event"));
    if (said != NULL && strcmp(said, event) == 0 && (uint64_t)real_of(report, "version") == version)
        return report;
    if (report != NULL) {
        const char *error = json_string_value(json_object_get(report, "error"));
        weir_cli_error("%s: version %llu was not %s: %s", child->name, (unsigned long long)version,
                       event, error != NULL ? error : "?");
    }
    json_decref(report);
    return NULL;
}

/* Trainers that send through a window say when they are done. */
static bool hear_trainers(weir_demo *demo, const weir_demo_version *result)
{
    for (int i = 0; i < demo->n_trainers && demo->options->window != NULL; i++) {
        json_t *report = read_report(&demo->trainers[i], "sent", result->version);
        if (report == NULL)
            return false;
        json_decref(report);
    }
    return true;
}

static bool refit(weir_demo *demo, weir_demo_version *result)
{
    char path[640];
    step_dir(demo, result->version, path, sizeof(path));
    double begun = weir_cli_now();
    for (int i = 0; i < demo->n_trainers; i++) {
        if (!weir_child_send(&demo->trainers[i], path))
            return false;
    }
    for (int i = 0; i < demo->n_trainers; i++) {
        json_t *report = read_report(&demo->trainers[i], "published", result->version);
        if (report == NULL)
            return false;
        take_seconds(report, result);
        take_memory(report, &result->trainer_memory_bytes);
        json_decref(report);
    }
    for (int i = 0; i < demo->n_workers; i++) {
        json_t *report = read_report(&demo->workers[i], "installed", result->version);
        if (report == NULL)
            return false;
        take_seconds(report, result);
        take_counters(report, &result->counters);
        take_memory(report, &result->worker_memory_bytes);
        uint64_t received = (uint64_t)real_of(report, "bytes");
        result->n_bytes = received > result->n_bytes ? received : result->n_bytes;
        result->total_bytes += received;
        json_decref(report);
    }
    result->refit_seconds = weir_cli_now() - begun;
    if (!hear_trainers(demo, result))
        return false;
    double transfer_s = result->seconds[WEIR_STOP_TRANSFER];
    result->transfer_gb_per_s =
        transfer_s > 0 ? (double)result->total_bytes / transfer_s * 1e-9 : 0;
    return true;
}

static bool verify(weir_demo *demo, int index, weir_demo_version *result)
{
    char path[640], worker[16];
    int code;
    weir_arguments list = { { NULL }, 0 };
    step_dir(demo, result->version, path, sizeof(path));
    weir_arguments_add(&list, NULL, "weir");
    weir_arguments_add(&list, NULL, "verify");
    weir_arguments_add(&list, NULL, path);
    snprintf(worker, sizeof(worker), "%d", worker_of(demo, index));
    weir_arguments_add(&list, "--replica", demo->workers[index].name);
    weir_arguments_add(&list, "--worker", worker);
    add_common(&list, demo);
    json_t *answer = weir_child_run_json("verify", list.items, STEP_TIMEOUT_S, &code);
    bool equal = answer != NULL && code == 0 && json_is_true(json_object_get(answer, "verified")) &&
                 (uint64_t)real_of(answer, "version") == result->version;
    result->n_parameters += (uint64_t)real_of(answer, "parameters");
    json_decref(answer);
    return equal;
}

bool weir_demo_step(weir_demo *demo, uint64_t version)
{
    weir_demo_version *result = &demo->versions[version - 1];
    result->version = version;
    if (version > 1 && !make_checkpoint(demo, version))
        return false;
    if (!refit(demo, result))
        return false;
    result->verified = true;
    for (int i = 0; i < demo->n_workers; i++)
        result->verified &= verify(demo, i, result);
    if (weir_cli_stopped())
        return false;
    demo->n_done = version;
    /* The first stays: its config.json is everybody's. The last stays mapped by the trainers. */
    if (version > 2)
        drop_checkpoint(demo, version - 1);
    if (!result->verified)
        weir_cli_error("version %llu was not verified", (unsigned long long)version);
    return result->verified;
}
