/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit_run.c - the processes of `weir bench refit`: starts them one by one, so that each
 * finds its GPU at rest, drives them version by version, and keeps what they say.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_refit.h"
#include "weir/cuda.h"

#define START_TIMEOUT_S 300.0
#define CHECK_TIMEOUT_S 1200.0
#define CHECKED_WHOLE_BYTES ((uint64_t)4 << 30) /* a model up to here is compared whole */
#define CHECKED_ENTRIES 64
/* What the first version is numbered after: all numbers are equally long, so that no message grows
 * with them and what grows is a leak. */
#define NUMBERED_AFTER 1000000u

/* ---- what the workers say --------------------------------------------------------------------*/

static double real_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static uint64_t count_of(const json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

/* The worker's next line, which must be of `event`. */
static json_t *read_event(weir_bench_run *run, size_t worker, const char *event, double timeout_s)
{
    json_t *said = weir_child_read_json(&run->workers[worker], timeout_s);
    const char *what = json_string_value(json_object_get(said, "event"));
    if (what != NULL && strcmp(what, event) == 0)
        return said;
    if (said != NULL)
        weir_cli_error("%s said '%s' instead of '%s'", run->workers[worker].name,
                       what != NULL ? what : "?", event);
    json_decref(said);
    return NULL;
}

static weir_process_memory memory_of(const json_t *said)
{
    return (weir_process_memory){ count_of(said, "heap_bytes"), count_of(said, "resident_bytes"),
                                  count_of(said, "own_bytes"), count_of(said, "alone_bytes") };
}

static void add_counters(const json_t *said, weir_counters *into)
{
    const json_t *counters = json_object_get(said, "counters");
    into->allocations += count_of(counters, "allocations");
    into->registrations += count_of(counters, "registrations");
    into->plans += count_of(counters, "plans");
    into->connections += count_of(counters, "connections");
}

static bool gpus_left(const weir_bench_run *run, uint64_t *out)
{
    for (size_t i = 0; i < run->bench->n_workers; i++) {
        weir_bench_place place = run->bench->places[i];
        out[i] = 0;
        if (place.cuda && weir_cuda_memory_left(place.device, &out[i]) != WEIR_OK)
            return weir_cli_fail(), false;
    }
    return true;
}

/* ---- start -----------------------------------------------------------------------------------*/

/* The numbers of a worker's command line. */
typedef struct number_texts {
    char versions[24], checked[24], seed[24], window[24], threads[24], timeout[24];
} number_texts;

static void add_number(weir_arguments *list, const char *option, uint64_t number, char text[24])
{
    snprintf(text, 24, "%llu", (unsigned long long)number);
    if (number != 0)
        weir_arguments_add(list, option, text);
}

static void add_common(weir_arguments *list, const weir_bench_run *run, number_texts *texts)
{
    const weir_bench_refit *bench = run->bench;
    weir_arguments_add(list, NULL, "weir");
    weir_arguments_add(list, NULL, "bench");
    weir_arguments_add(list, NULL, "refit");
    weir_arguments_add(list, "--directory", weir_directory_address(run->directory));
    weir_arguments_add(list, "--config", run->config);
    weir_arguments_add(list, "--family", bench->family);
    weir_arguments_add(list, "--layout", bench->layout);
    weir_arguments_add(list, "--conversion", bench->conversion);
    weir_arguments_add(list, "--naming", bench->naming_text);
    weir_arguments_add(list, "--mode", bench->mode);
    add_number(list, "--versions", bench->n_versions, texts->versions);
    add_number(list, "--seed", bench->seed, texts->seed);
    add_number(list, "--window", bench->window_bytes, texts->window);
    add_number(list, "--threads", bench->n_threads, texts->threads);
    add_number(list, "--timeout", bench->timeout_s, texts->timeout);
}

static int put_place(weir_bench_place place, char *text, size_t text_bytes)
{
    return place.cuda ? snprintf(text, text_bytes, "%u", place.device)
                      : snprintf(text, text_bytes, "cpu");
}

static bool start_trainer(weir_bench_run *run)
{
    const weir_bench_refit *bench = run->bench;
    weir_arguments list = { { NULL }, 0 };
    number_texts texts;
    char places[128];
    int n = put_place(bench->places[0], places, sizeof(places));
    for (size_t i = 1; i < bench->n_workers; i++) {
        places[n++] = i == 1 ? ':' : ',';
        n += put_place(bench->places[i], places + n, sizeof(places) - (size_t)n);
    }
    add_common(&list, run, &texts);
    weir_arguments_add(&list, "--role", "trainer");
    weir_arguments_add(&list, "--gpus", places);
    weir_arguments_add(&list, "--transport", bench->transport);
    weir_arguments_add(&list, "--delivery", bench->delivery);
    weir_arguments_add(&list, NULL, bench->scan_first ? "--scan-first" : NULL);
    if (!weir_child_start(&run->workers[0], "trainer", list.items))
        return false;
    json_t *said = read_event(run, 0, "ready", START_TIMEOUT_S);
    run->n_weights = count_of(said, "weights");
    run->weight_bytes = count_of(said, "bytes");
    json_decref(said);
    return said != NULL;
}

static bool start_replica(weir_bench_run *run, size_t worker)
{
    const weir_bench_refit *bench = run->bench;
    weir_arguments list = { { NULL }, 0 };
    number_texts texts;
    char name[32], place[16];
    snprintf(name, sizeof(name), "replica-%zu", worker - 1);
    put_place(bench->places[worker], place, sizeof(place));
    add_common(&list, run, &texts);
    weir_arguments_add(&list, "--role", "replica");
    weir_arguments_add(&list, "--name", name);
    weir_arguments_add(&list, "--gpus", place);
    weir_arguments_add(&list, "--install", bench->install);
    if (!bench->checks_given && run->weight_bytes > CHECKED_WHOLE_BYTES)
        add_number(&list, "--check", CHECKED_ENTRIES, texts.checked);
    else if (bench->n_checked != WEIR_BENCH_CHECK_ALL)
        add_number(&list, "--check", bench->n_checked, texts.checked);
    if (!weir_child_start(&run->workers[worker], name, list.items))
        return false;
    json_t *said = read_event(run, worker, "ready", START_TIMEOUT_S);
    run->parameter_bytes = count_of(said, "bytes");
    run->extra_setup[worker] = count_of(said, "extra_bytes");
    run->memory_before[worker] = memory_of(said);
    json_decref(said);
    return said != NULL;
}

static bool write_config(weir_bench_run *run)
{
    const char *parent = getenv("TMPDIR");
    char *text = NULL;
    snprintf(run->work_dir, sizeof(run->work_dir), "%s/weir-bench-XXXXXX",
             parent != NULL ? parent : "/tmp");
    if (weir_family_preset(run->bench->family, run->bench->preset, &text) != WEIR_OK) {
        run->work_dir[0] = '\0';
        return weir_cli_fail(), false;
    }
    bool made = mkdtemp(run->work_dir) != NULL;
    snprintf(run->config, sizeof(run->config), "%s/config.json", run->work_dir);
    FILE *file = made ? fopen(run->config, "we") : NULL;
    bool good = file != NULL && fputs(text, file) >= 0;
    good = file != NULL && fclose(file) == 0 && good;
    weir_string_free(text);
    if (!good)
        weir_cli_error("cannot write %s: %s", made ? run->config : run->work_dir, strerror(errno));
    if (!made)
        run->work_dir[0] = '\0';
    return good;
}

bool weir_bench_run_begin(weir_bench_run *run)
{
    weir_directory_options directory = WEIR_DIRECTORY_OPTIONS_INIT;
    if (!write_config(run))
        return false;
    /* The C library counts what its threads keep for the next allocation as taken. */
    if (run->bench->soak)
        setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0", 1);
    if (weir_directory_open(&directory, &run->directory) != WEIR_OK)
        return weir_cli_fail(), false;
    if (!start_trainer(run))
        return false;
    for (size_t i = 1; i < run->bench->n_workers; i++) {
        if (!start_replica(run, i))
            return false;
    }
    if (!gpus_left(run, run->gpu_left_before) || !weir_child_send(&run->workers[0], "begin"))
        return false;
    json_t *said = read_event(run, 0, "begun", START_TIMEOUT_S);
    run->memory_before[0] = memory_of(said);
    json_decref(said);
    return said != NULL;
}

void weir_bench_run_end(weir_bench_run *run)
{
    for (size_t i = run->bench->n_workers; i-- > 0;)
        weir_child_end(&run->workers[i]);
    weir_directory_close(run->directory);
    run->directory = NULL;
    if (run->work_dir[0] == '\0')
        return;
    unlink(run->config);
    rmdir(run->work_dir);
}

/* ---- one version -----------------------------------------------------------------------------*/

static void take_seconds(const json_t *said, weir_bench_version *into)
{
    const json_t *seconds = json_object_get(said, "seconds");
    for (int stop = 0; stop < WEIR_N_STOPS; stop++) {
        double s = real_of(seconds, weir_stop_name((weir_stop)stop));
        if (s > into->seconds[stop])
            into->seconds[stop] = s;
    }
}

/* A trainer whose replica has died can only say that it waited in vain. */
static void name_the_dead(const weir_bench_run *run)
{
    for (size_t i = 1; i < run->bench->n_workers && !weir_cli_stopped(); i++) {
        if (!weir_child_runs(&run->workers[i]))
            weir_cli_error("%s has ended", run->workers[i].name);
    }
}

bool weir_bench_run_step(weir_bench_run *run, uint64_t version)
{
    weir_bench_version *result = &run->versions[version - 1];
    double timeout_s = 30.0 + 3.0 * (double)run->bench->timeout_s;
    char line[48];
    snprintf(line, sizeof(line), "publish %llu", (unsigned long long)NUMBERED_AFTER + version);
    if (!weir_child_send(&run->workers[0], line))
        return false;
    json_t *said = read_event(run, 0, "published", timeout_s);
    if (said == NULL)
        return name_the_dead(run), false;
    result->publish_s = real_of(said, "publish_seconds");
    result->wait_s = real_of(said, "wait_seconds");
    result->total_s = result->publish_s + result->wait_s;
    result->memory[0] = memory_of(said);
    add_counters(said, &result->trainer_did);
    json_decref(said);
    for (size_t i = 1; i < run->bench->n_workers; i++) {
        said = read_event(run, i, "installed", timeout_s);
        if (said == NULL)
            return false;
        uint64_t installed = count_of(said, "version") - NUMBERED_AFTER;
        if (installed != version)
            weir_cli_error("%s installed version %llu instead of %llu", run->workers[i].name,
                           (unsigned long long)installed, (unsigned long long)version);
        run->n_bytes = count_of(said, "bytes");
        result->memory[i] = memory_of(said);
        take_seconds(said, result);
        add_counters(said, &result->replicas_did);
        json_decref(said);
        if (installed != version)
            return false;
    }
    run->n_done = version;
    return gpus_left(run, result->gpu_left);
}

bool weir_bench_run_check(weir_bench_run *run)
{
    weir_bench_checked *sum = &run->checked;
    if (run->bench->checks_given && run->bench->n_checked == 0)
        return true;
    for (size_t i = 1; i < run->bench->n_workers; i++) {
        if (!weir_child_send(&run->workers[i], "check"))
            return false;
    }
    for (size_t i = 1; i < run->bench->n_workers; i++) {
        json_t *said = read_event(run, i, "checked", CHECK_TIMEOUT_S);
        if (said == NULL)
            return false;
        sum->n_entries += count_of(said, "entries");
        sum->n_all_entries += count_of(said, "all_entries");
        sum->n_bytes += count_of(said, "bytes");
        if (count_of(said, "different") > 0 && sum->n_different == 0)
            snprintf(sum->first_difference, sizeof(sum->first_difference), "%s: %s",
                     run->workers[i].name,
                     json_string_value(json_object_get(said, "first_difference")));
        sum->n_different += count_of(said, "different");
        json_decref(said);
    }
    run->was_checked = true;
    if (sum->n_different == 0)
        return true;
    return weir_cli_error("version %llu was not verified: %llu parameters differ: %s",
                          (unsigned long long)run->n_done, (unsigned long long)sum->n_different,
                          sum->first_difference),
           false;
}
