/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_info.c - `weir info`: what this build and this machine offer, and why something is off. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "weir/cuda.h"

#define MAX_ROWS 32

const char weir_usage_info[] =
    "usage: weir info [--json]\n"
    "\n"
    "Shows the version, the rungs of the CPU ladder and why one is off, the threads of a pool, "
    "the\n"
    "devices, the transports in order of preference and why one is off, the GPUs, and every\n"
    "environment variable that Weir reads.\n"
    "\n"
    "  --json         one object: version, cpu, threads, devices, gpus, transports,\n"
    "                 environment\n";

/* One thing that is on, or off for a reason. */
static json_t *switch_json(const char *name, bool on, const char *why_not)
{
    return json_pack("{s:s, s:b, s:s}", "name", name, "available", on, "why_not", why_not);
}

static void print_switch(const char *label, const json_t *row)
{
    const char *why_not = json_string_value(json_object_get(row, "why_not"));
    bool on = json_is_true(json_object_get(row, "available"));
    printf("  %-11s %-8s %s%s\n", label, json_string_value(json_object_get(row, "name")),
           on ? "on" : "off: ", on ? "" : why_not);
}

static json_t *cpu_json(void)
{
    weir_cpu_rung rungs[MAX_ROWS];
    size_t n_rungs = weir_cpu_rungs(rungs, MAX_ROWS);
    json_t *rows = json_array();
    for (size_t i = 0; i < n_rungs && i < MAX_ROWS; i++)
        json_array_append_new(rows, switch_json(rungs[i].name, rungs[i].in_use, rungs[i].why_not));
    return rows;
}

/* The reason stands behind a fixed beginning. */
static json_t *cuda_json(void)
{
    unsigned n_gpus = 0;
    if (weir_cuda_devices(&n_gpus) == WEIR_OK)
        return switch_json("cuda", true, "");
    const char *line = weir_last_error(), *begin = "CUDA is off: ";
    return switch_json("cuda", false,
                       strncmp(line, begin, strlen(begin)) == 0 ? line + strlen(begin) : line);
}

static json_t *gpus_json(void)
{
    unsigned n_gpus = 0;
    weir_cuda_device gpu;
    json_t *rows = json_array();
    if (weir_cuda_devices(&n_gpus) != WEIR_OK)
        return rows;
    for (unsigned i = 0; i < n_gpus && weir_cuda_describe(i, &gpu) == WEIR_OK; i++)
        json_array_append_new(
            rows, json_pack("{s:i, s:s, s:I, s:[i, i], s:i, s:i}", "gpu", (int)i, "name", gpu.name,
                            "memory_bytes", (json_int_t)gpu.memory_bytes, "compute",
                            (int)gpu.compute_major, (int)gpu.compute_minor, "multiprocessors",
                            (int)gpu.n_multiprocessors, "driver", (int)gpu.driver_version));
    return rows;
}

static void print_gpu(const json_t *gpu)
{
    const json_t *compute = json_object_get(gpu, "compute");
    int driver = (int)json_integer_value(json_object_get(gpu, "driver"));
    printf("  gpu %-7d %s, %s, compute %d.%d, %d multiprocessors, driver for CUDA %d.%d\n",
           (int)json_integer_value(json_object_get(gpu, "gpu")),
           json_string_value(json_object_get(gpu, "name")),
           weir_cli_bytes_text((uint64_t)json_integer_value(json_object_get(gpu, "memory_bytes")))
               .text,
           (int)json_integer_value(json_array_get(compute, 0)),
           (int)json_integer_value(json_array_get(compute, 1)),
           (int)json_integer_value(json_object_get(gpu, "multiprocessors")), driver / 1000,
           driver % 1000 / 10);
}

static json_t *transports_json(void)
{
    weir_transport_info infos[MAX_ROWS];
    size_t n_infos = weir_transports(infos, MAX_ROWS);
    json_t *rows = json_array();
    for (size_t i = 0; i < n_infos && i < MAX_ROWS; i++)
        json_array_append_new(rows,
                              switch_json(infos[i].name, infos[i].available, infos[i].why_not));
    return rows;
}

static json_t *environment_json(void)
{
    weir_env_info infos[MAX_ROWS];
    size_t n_infos = weir_env_table(infos, MAX_ROWS);
    json_t *rows = json_array();
    for (size_t i = 0; i < n_infos && i < MAX_ROWS; i++)
        json_array_append_new(rows,
                              json_pack("{s:s, s:s, s:s, s:s?, s:s}", "name", infos[i].name, "type",
                                        infos[i].type, "default", infos[i].default_value, "value",
                                        infos[i].value, "help", infos[i].help));
    return rows;
}

static json_t *info_json(unsigned n_threads)
{
    json_t *devices = json_array();
    json_array_append_new(devices, switch_json("cpu", true, ""));
    json_array_append_new(devices, cuda_json());
    return json_pack("{s:s, s:o, s:i, s:o, s:o, s:o, s:o}", "version", weir_version(), "cpu",
                     cpu_json(), "threads", (int)n_threads, "devices", devices, "gpus", gpus_json(),
                     "transports", transports_json(), "environment", environment_json());
}

static void print_info(const json_t *info)
{
    static const char *const switches[][2] = { { "cpu", "cpu" },
                                               { "devices", "device" },
                                               { "transports", "transport" } };
    printf("weir %s, %d threads\n", json_string_value(json_object_get(info, "version")),
           (int)json_integer_value(json_object_get(info, "threads")));
    size_t index;
    json_t *row;
    for (size_t i = 0; i < sizeof(switches) / sizeof(switches[0]); i++)
        json_array_foreach(json_object_get(info, switches[i][0]), index, row)
            print_switch(switches[i][1], row);
    json_array_foreach(json_object_get(info, "gpus"), index, row) print_gpu(row);
    puts("environment");
    json_array_foreach(json_object_get(info, "environment"), index, row)
    {
        const char *value = json_string_value(json_object_get(row, "value"));
        const char *fallback = json_string_value(json_object_get(row, "default"));
        printf("  %s (%s) = %s%s%s\n      %s\n", json_string_value(json_object_get(row, "name")),
               json_string_value(json_object_get(row, "type")), value != NULL ? value : "unset",
               value == NULL && fallback[0] != '\0' ? ", default " : "",
               value == NULL ? fallback : "", json_string_value(json_object_get(row, "help")));
    }
}

int weir_cmd_info(int argc, char **argv)
{
    bool as_json;
    if (!weir_cli_json_option(argc, argv, &as_json))
        return WEIR_EXIT_USAGE;
    if (optind < argc)
        return weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);

    weir_pool *pool = NULL;
    if (weir_pool_open(0, &pool) != WEIR_OK)
        return weir_cli_fail();
    json_t *info = info_json(weir_pool_threads(pool));
    weir_pool_close(pool);
    if (as_json || info == NULL)
        return weir_cli_print_json(info);
    print_info(info);
    json_decref(info);
    return WEIR_EXIT_OK;
}
