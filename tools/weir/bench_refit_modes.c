/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit_modes.c - what a checkpoint and kernel bytes come to, side by side. */
#include <stdio.h>

#include "bench_refit.h"

/* Each row is read from the figures of one mode. */
typedef struct row {
    const char *label;
    weir_cli_text (*text)(const weir_bench_figures *figures);
} row;

static weir_cli_text bytes_text(const weir_bench_figures *figures)
{
    return weir_cli_bytes_text(figures->n_bytes);
}

static weir_cli_text seconds_text(const weir_bench_figures *figures)
{
    return weir_cli_duration_text(figures->seconds);
}

static weir_cli_text rate_text(const weir_bench_figures *figures)
{
    return weir_cli_rate_text(figures->gb_per_s * 1e9);
}

static weir_cli_text trainer_text(const weir_bench_figures *figures)
{
    return weir_cli_bytes_text(figures->trainer_bytes);
}

static weir_cli_text replica_text(const weir_bench_figures *figures)
{
    return weir_cli_bytes_text(figures->replica_bytes);
}

static weir_cli_text trainer_gpu_text(const weir_bench_figures *figures)
{
    return weir_cli_bytes_text(figures->trainer_gpu_bytes);
}

static weir_cli_text replica_gpu_text(const weir_bench_figures *figures)
{
    return weir_cli_bytes_text(figures->replica_gpu_bytes);
}

static const row rows[] = {
    { "bytes to each replica", bytes_text },
    { "seconds of a refit", seconds_text },
    { "rate", rate_text },
    { "trainer's host memory, weights too", trainer_text },
    { "replica's host memory, parameters too", replica_text },
    { "trainer's extra GPU memory", trainer_gpu_text },
    { "replica's extra GPU memory", replica_gpu_text },
};

static double ratio(double of, double to)
{
    return to > 0 ? of / to : 0;
}

void weir_bench_print_modes(const weir_bench_figures *checkpoint, const weir_bench_figures *kernel)
{
    printf("\n%-40s %14s %14s\n", "what the flag buys", "checkpoint", "kernel");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        printf("%-40s %14s %14s\n", rows[i].label, rows[i].text(checkpoint).text,
               rows[i].text(kernel).text);
    printf("kernel mode moves %.2f of the bytes in %.2f of the time\n",
           ratio((double)kernel->n_bytes, (double)checkpoint->n_bytes),
           ratio(kernel->seconds, checkpoint->seconds));
}

static json_t *figures_json(const weir_bench_figures *figures)
{
    return json_pack("{s:I, s:f, s:f, s:I, s:I, s:I, s:I}", "bytes_per_replica",
                     (json_int_t)figures->n_bytes, "refit_seconds", figures->seconds, "gb_per_s",
                     figures->gb_per_s, "trainer_memory_bytes", (json_int_t)figures->trainer_bytes,
                     "replica_memory_bytes", (json_int_t)figures->replica_bytes,
                     "trainer_extra_gpu_bytes", (json_int_t)figures->trainer_gpu_bytes,
                     "replica_extra_gpu_bytes", (json_int_t)figures->replica_gpu_bytes);
}

json_t *weir_bench_modes_json(const weir_bench_figures *checkpoint,
                              const weir_bench_figures *kernel)
{
    return json_pack("{s:o, s:o, s:f, s:f}", "checkpoint", figures_json(checkpoint), "kernel",
                     figures_json(kernel), "bytes_of_kernel_per_checkpoint",
                     ratio((double)kernel->n_bytes, (double)checkpoint->n_bytes),
                     "seconds_of_kernel_per_checkpoint",
                     ratio(kernel->seconds, checkpoint->seconds));
}
