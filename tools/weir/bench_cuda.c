/* SPDX-License-Identifier: Apache-2.0 */
/* bench_cuda.c - conversions and digests on a GPU beside device copies of as many bytes.
 *
 * Several sets of buffers, together far larger than the second-level cache, are converted one after
 * the other between two events; then as many bytes are copied within the same buffers, and so on in
 * turns. Each is reported by its median.
 */
#include "bench_cuda.h"

#include <stdlib.h>

#include "bench_work.h"

#define N_SETS 6
#define MAX_ROUNDS 400
#define LEAST_ROUNDS 7
#define MAX_LINES 24

typedef struct line {
    const char *what, *conversion;
    double gb_per_s, digest_gb_per_s, copy_gb_per_s;
    unsigned n_rounds;
} line;

typedef struct measure {
    weir_bench_work plain[N_SETS];
    weir_convert_args digesting[N_SETS][WEIR_BENCH_MAX_ARGS];
    weir_cuda_batch *batches[2 * N_SETS]; /* plain ones, then those with digests */
    weir_cuda_timer *timer;
    void *stream;
} measure;

static void close_all(measure *m)
{
    for (size_t i = 0; i < 2 * N_SETS; i++)
        weir_cuda_batch_close(m->batches[i]);
    for (size_t i = 0; i < N_SETS; i++)
        weir_bench_work_close(&m->plain[i]);
    weir_cuda_timer_close(m->timer);
    weir_cuda_stream_close(0, m->stream);
    free(m);
}

static measure *open_all(const weir_bench_wish *wish)
{
    measure *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return NULL;
    weir_status status = weir_cuda_stream_open(0, &m->stream);
    if (status == WEIR_OK)
        status = weir_cuda_timer_open(0, &m->timer);
    for (size_t i = 0; status == WEIR_OK && i < N_SETS; i++)
        status = weir_bench_work_open(wish, &m->plain[i]);
    for (size_t i = 0; status == WEIR_OK && i < 2 * N_SETS; i++)
        status = weir_cuda_batch_open(0, &m->batches[i]);
    if (status != WEIR_OK) {
        close_all(m);
        return NULL;
    }
    for (size_t i = 0; i < N_SETS; i++) {
        for (size_t k = 0; k < m->plain[i].n_args; k++) {
            m->digesting[i][k] = m->plain[i].args[k];
            m->digesting[i][k].digests = m->plain[i].digests[k];
        }
    }
    return m;
}

/* Leaves the second-level cache as a copy does, full of lines to write back: whatever is timed next
 * pays for them, and nothing else differs between what is compared. */
static weir_status settle(measure *m)
{
    const weir_bench_work *work = &m->plain[N_SETS - 1];
    size_t n = work->out_bytes < work->in_bytes ? work->out_bytes : work->in_bytes;
    return weir_cuda_copy(0, work->out, work->in, n, m->stream);
}

static uint64_t source_bytes(const weir_tensor *source)
{
    uint64_t n_bytes = 0;
    weir_tensor_bytes(source->dtype, &source->shape, &n_bytes);
    return n_bytes;
}

/* Seconds of one set. */
static weir_status convert_all(measure *m, bool digests, double *out_seconds)
{
    weir_cuda_batch **batches = m->batches + (digests ? N_SETS : 0);
    weir_status status = settle(m);
    if (status == WEIR_OK)
        status = weir_cuda_timer_begin(m->timer, m->stream);
    for (size_t i = 0; status == WEIR_OK && i < N_SETS; i++)
        status = weir_cuda_batch_start(batches[i], digests ? m->digesting[i] : m->plain[i].args,
                                       m->plain[i].n_args, m->stream);
    if (status == WEIR_OK)
        status = weir_cuda_timer_end(m->timer, m->stream);
    if (status == WEIR_OK)
        status = weir_cuda_timer_seconds(m->timer, out_seconds);
    for (size_t i = 0; i < N_SETS; i++) {
        weir_status ended = weir_cuda_batch_wait(batches[i]);
        status = status == WEIR_OK ? ended : status;
    }
    *out_seconds /= N_SETS;
    return status;
}

/* Digests of what the sets would convert, with or without a look for what is not finite. */
static weir_status digest_all(measure *m, bool check, double *out_seconds)
{
    weir_cuda_batch **batches = m->batches + (check ? N_SETS : 0);
    weir_status status = settle(m);
    if (status == WEIR_OK)
        status = weir_cuda_timer_begin(m->timer, m->stream);
    for (size_t i = 0; status == WEIR_OK && i < N_SETS; i++) {
        const weir_tensor *source = &m->plain[i].sources[0];
        const weir_cuda_range range = { source->name,
                                        source->data,
                                        1,
                                        source_bytes(source),
                                        0,
                                        source->dtype,
                                        check,
                                        &m->plain[i].digests[0][0] };
        status = weir_cuda_batch_digest(batches[i], &range, 1, m->stream);
    }
    if (status == WEIR_OK)
        status = weir_cuda_timer_end(m->timer, m->stream);
    if (status == WEIR_OK)
        status = weir_cuda_timer_seconds(m->timer, out_seconds);
    for (size_t i = 0; i < N_SETS; i++) {
        weir_status ended = weir_cuda_batch_wait(batches[i]);
        status = status == WEIR_OK ? ended : status;
    }
    *out_seconds /= N_SETS;
    return status;
}

/* Half of the bytes are read and half written, by one copy for each set: from one set to the next,
 * between the larger pieces of both. Sources may be overwritten, as all sets have the same. */
static weir_status copy_all(measure *m, double *out_seconds)
{
    weir_status status = settle(m);
    if (status == WEIR_OK)
        status = weir_cuda_timer_begin(m->timer, m->stream);
    for (size_t i = 0; status == WEIR_OK && i < N_SETS; i++) {
        const weir_bench_work *work = &m->plain[i], *next = &m->plain[(i + 1) % N_SETS];
        bool in_sources = work->in_bytes >= work->out_bytes;
        status =
            weir_cuda_copy(0, in_sources ? next->in : next->out, in_sources ? work->in : work->out,
                           (size_t)(work->n_bytes / 2), m->stream);
    }
    if (status == WEIR_OK)
        status = weir_cuda_timer_end(m->timer, m->stream);
    if (status == WEIR_OK)
        status = weir_cuda_timer_seconds(m->timer, out_seconds);
    *out_seconds /= N_SETS;
    return status;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* `work` is convert_all or digest_all. */
static bool measure_line(const weir_bench_cuda *options, const weir_bench_wish *wish,
                         weir_status (*work)(measure *, bool, double *), line *out)
{
    static double times[3][MAX_ROUNDS];
    measure *m = open_all(wish);
    if (m == NULL) {
        weir_cli_fail();
        return false;
    }
    double end = weir_cli_now() + (double)options->seconds, warm;
    weir_status status = WEIR_OK;
    unsigned n = 0;
    for (int i = 0; status == WEIR_OK && i < 3; i++) { /* clocks, tables, code */
        status = work(m, false, &warm);
        if (status == WEIR_OK)
            status = work(m, true, &warm);
        if (status == WEIR_OK)
            status = copy_all(m, &warm);
    }
    for (; status == WEIR_OK && n < MAX_ROUNDS && (n < LEAST_ROUNDS || weir_cli_now() < end); n++) {
        status = work(m, false, &times[0][n]);
        if (status == WEIR_OK)
            status = work(m, true, &times[1][n]);
        if (status == WEIR_OK)
            status = copy_all(m, &times[2][n]);
    }
    if (status == WEIR_OK) {
        bool reads = work == digest_all;
        double copied = (double)m->plain[0].n_bytes * 1e-9;
        double gb = reads ? (double)source_bytes(&m->plain[0].sources[0]) * 1e-9 : copied;
        out->conversion = reads ? "digest" : wish->conversion->name;
        out->n_rounds = n;
        out->gb_per_s = gb / median(times[0], n);
        out->digest_gb_per_s = gb / median(times[1], n);
        out->copy_gb_per_s = copied / median(times[2], n);
    }
    close_all(m);
    if (status != WEIR_OK)
        weir_cli_fail();
    return status == WEIR_OK;
}

/* A large matrix that is read only; in the column of digests those that look for what is not finite
 * as well. */
static bool measure_digest(const weir_bench_cuda *options, line *out)
{
    weir_bench_wish wish = { .dtype = options->dtype, .shape = WEIR_BENCH_LARGE };
    *out = (line){ .what = "large" };
    if (weir_conversion_get("bf16_cast", &wish.conversion) == WEIR_OK)
        return measure_line(options, &wish, digest_all, out);
    weir_cli_fail();
    return false;
}

static int print_lines(const weir_bench_cuda *options, const weir_cuda_device *device,
                       const line *lines, size_t n)
{
    if (!options->json) {
        printf("%s, driver %u.%u, %s sources; GB/s of weights read and written\n", device->name,
               device->driver_version / 1000, device->driver_version % 1000 / 10,
               weir_dtype_name(options->dtype));
        printf("%-30s %-8s %8s %8s %8s %9s %9s\n", "conversion", "of", "GB/s", "digest", "copy",
               "fraction", "digest");
        for (size_t i = 0; i < n; i++)
            printf("%-30s %-8s %8.0f %8.0f %8.0f %9.3f %9.3f\n", lines[i].conversion, lines[i].what,
                   lines[i].gb_per_s, lines[i].digest_gb_per_s, lines[i].copy_gb_per_s,
                   lines[i].gb_per_s / lines[i].copy_gb_per_s,
                   lines[i].digest_gb_per_s / lines[i].copy_gb_per_s);
        return WEIR_EXIT_OK;
    }
    json_t *rows = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(
            rows,
            json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:i}", "conversion", lines[i].conversion,
                      "of", lines[i].what, "gb_per_s", lines[i].gb_per_s, "digest_gb_per_s",
                      lines[i].digest_gb_per_s, "copy_gb_per_s", lines[i].copy_gb_per_s,
                      "fraction_of_copy", lines[i].gb_per_s / lines[i].copy_gb_per_s,
                      "digest_fraction_of_copy", lines[i].digest_gb_per_s / lines[i].copy_gb_per_s,
                      "rounds", (int)lines[i].n_rounds));
    return weir_cli_print_json(
        json_pack("{s:s, s:i, s:s, s:[I,I], s:o}", "device", device->name, "driver",
                  (int)device->driver_version, "source", weir_dtype_name(options->dtype), "shape",
                  (json_int_t)options->rows, (json_int_t)options->cols, "results", rows));
}

int weir_bench_cuda_run(const weir_bench_cuda *options)
{
    static const char *const conversions[] = { "fp8_128x128", "cutlass_fp8_e4m3_per_channel",
                                               "bf16_cast", "fp32_cast" };
    static const char *const shapes[] = { "matrix", "large", "experts", "layer" };
    line lines[MAX_LINES];
    size_t n = 0;
    weir_cuda_device device;
    if (weir_cuda_describe(0, &device) != WEIR_OK)
        return weir_cli_fail();
    for (size_t c = 0; c < 4; c++) {
        weir_bench_wish wish = { .dtype = options->dtype,
                                 .rows = options->rows,
                                 .cols = options->cols };
        const char *name = options->only != NULL ? options->only : conversions[c];
        if (options->only != NULL && c > 0)
            break;
        if (weir_conversion_get(name, &wish.conversion) != WEIR_OK)
            return weir_cli_fail();
        size_t n_shapes = wish.conversion->n_outputs > 1 ? 4 : 2; /* casts: no experts */
        for (size_t s = 0; s < n_shapes; s++) {
            wish.shape = (weir_bench_shape)s;
            lines[n] = (line){ .what = shapes[s] };
            if (!measure_line(options, &wish, convert_all, &lines[n++]))
                return WEIR_EXIT_FAILED;
        }
    }
    if (options->only == NULL && !measure_digest(options, &lines[n++]))
        return WEIR_EXIT_FAILED;
    return print_lines(options, &device, lines, n);
}
