/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit_limit.c - what a refit between these places is measured against, on the same machine
 * once the workers have ended: `weir bench copy` as a process of its own for GPUs, copies by all
 * cores for host memory.
 */
#include <stdio.h>
#include <string.h>

#include "bench_refit.h"
#include "memory_limit.h"

#define MOST_BYTES ((uint64_t)4 << 30) /* of one copy: a larger one is no faster */
#define TIMEOUT_S 180.0

/* The GPUs as `bench copy` takes them, each once; how many there are. */
static size_t list_gpus(const weir_bench_refit *bench, char *text, size_t text_bytes)
{
    size_t n = 0, used = 0;
    for (size_t i = 0; i < bench->n_workers; i++) {
        bool again = false;
        for (size_t k = 0; k < i; k++)
            again |= bench->places[k].device == bench->places[i].device;
        if (!again && used < text_bytes)
            used += (size_t)snprintf(text + used, text_bytes - used, "%s%u", n > 0 ? "," : "",
                                     bench->places[i].device);
        n += !again;
    }
    return n;
}

static void take_result(weir_bench_run *run, const char *way, const json_t *said)
{
    const json_t *row = json_array_get(json_object_get(said, "results"), 0);
    double rate = json_number_value(json_object_get(row, "gb_per_s"));
    const char *over = json_string_value(json_object_get(row, "over"));
    bool device = strcmp(way, "device") == 0;
    /* A device copy counts each byte twice: read and written. */
    run->limit_gb_per_s = device ? rate / 2 : rate;
    snprintf(run->limit_name, sizeof(run->limit_name), "%s, %s",
             device                     ? "device copy"
             : strcmp(way, "peer") == 0 ? "peer copy"
                                        : "NCCL broadcast",
             over != NULL ? over : "?");
}

static void measure_gpus(weir_bench_run *run)
{
    char gpus[128], bytes[24];
    weir_arguments list = { { NULL }, 0 };
    int code;
    size_t n = list_gpus(run->bench, gpus, sizeof(gpus));
    bool broadcast = run->bench->transport != NULL && strcmp(run->bench->transport, "nccl") == 0;
    const char *way = n < 2 ? "device" : broadcast ? "nccl" : "peer";
    snprintf(bytes, sizeof(bytes), "%llu",
             (unsigned long long)(run->n_bytes < MOST_BYTES ? run->n_bytes : MOST_BYTES));
    weir_arguments_add(&list, NULL, "weir");
    weir_arguments_add(&list, NULL, "bench");
    weir_arguments_add(&list, NULL, "copy");
    weir_arguments_add(&list, "--transport", way);
    weir_arguments_add(&list, "--gpus", gpus);
    weir_arguments_add(&list, "--bytes", bytes);
    weir_arguments_add(&list, NULL, "--json");
    json_t *said = weir_child_run_json("bench copy", list.items, TIMEOUT_S, &code);
    if (said != NULL && code == WEIR_EXIT_OK)
        take_result(run, way, said);
    else
        snprintf(run->why_no_limit, sizeof(run->why_no_limit), "'weir bench copy' failed");
    json_decref(said);
}

void weir_bench_run_limit(weir_bench_run *run)
{
    bool gpus = true, hosts = true;
    for (size_t i = 0; i < run->bench->n_workers; i++) {
        gpus &= run->bench->places[i].cuda;
        hosts &= !run->bench->places[i].cuda;
    }
    if (run->n_bytes == 0)
        return;
    if (gpus) {
        measure_gpus(run);
    } else if (hosts) {
        run->limit_gb_per_s = weir_memory_copy_gb_per_s();
        snprintf(run->limit_name, sizeof(run->limit_name), "copies by all cores");
    } else {
        snprintf(run->why_no_limit, sizeof(run->why_no_limit), "GPUs and hosts are mixed");
    }
}
