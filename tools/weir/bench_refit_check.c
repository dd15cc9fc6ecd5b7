/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit_check.c - does a replica hold what it should?
 *
 * The weights of the version are made once more, in host memory, converted with the C reference
 * kernels and compared with the live parameters byte for byte. Nothing is asked of the trainer.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_refit.h"
#include "weir/cuda.h"

typedef struct checker {
    const weir_bench_refit *bench;
    uint64_t version;
    weir_bench_weights weights;
    weir_config *config;
    weir_mapping *mapping;
    weir_pool *pool;
    const weir_tensor **by_name; /* of the weights */
    const weir_tensor *live;
    size_t n_live;
    const weir_parameter *parameters;
    size_t n_parameters;
    weir_bench_checked *out;
} checker;

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const weir_tensor *const *)a)->name, (*(const weir_tensor *const *)b)->name);
}

static uint64_t bytes_of(weir_dtype dtype, const weir_shape *shape)
{
    uint64_t n_bytes = 0;
    weir_tensor_bytes(dtype, shape, &n_bytes); /* the mapping has checked it */
    return n_bytes;
}

static bool open_checker(checker *self)
{
    const weir_bench_refit *bench = self->bench;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    if (!weir_bench_weights_open(bench->family, bench->config, bench->naming, bench->seed,
                                 &self->weights))
        return false;
    size_t n = self->weights.n_tensors;
    self->by_name = malloc((n + 1) * sizeof(*self->by_name));
    if (self->by_name == NULL)
        return weir_cli_error("out of memory"), false;
    for (size_t i = 0; i < n; i++)
        self->by_name[i] = &self->weights.tensors[i];
    qsort(self->by_name, n, sizeof(*self->by_name), compare_names);
    weir_status status = weir_config_open(bench->config, &self->config);
    options.family = bench->family;
    options.layout = bench->layout;
    options.conversion = bench->conversion;
    options.config = self->config;
    if (status == WEIR_OK)
        status = weir_mapping_open(&options, self->weights.tensors, n, &self->mapping);
    if (status == WEIR_OK)
        status = weir_pool_open((unsigned)bench->n_threads, &self->pool);
    if (status != WEIR_OK)
        return weir_cli_fail(), false;
    self->parameters = weir_mapping_parameters(self->mapping, &self->n_parameters);
    return true;
}

static void close_checker(checker *self)
{
    weir_pool_close(self->pool);
    weir_mapping_close(self->mapping);
    weir_config_close(self->config);
    free(self->by_name);
    weir_bench_weights_close(&self->weights);
}

/* ---- one entry -------------------------------------------------------------------------------*/

/* Copies of an entry's sources, with data. NULL when there is no memory. */
static weir_tensor *make_sources(const checker *self, const weir_map_entry *entry)
{
    size_t n = entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1);
    weir_tensor *sources = calloc(n + 1, sizeof(*sources));
    for (size_t i = 0; i < n && sources != NULL; i++) {
        const weir_tensor *wanted = &entry->sources[i];
        const weir_tensor **found = bsearch(&wanted, self->by_name, self->weights.n_tensors,
                                            sizeof(*self->by_name), compare_names);
        uint64_t n_bytes = bytes_of(wanted->dtype, &wanted->shape);
        sources[i] = *wanted;
        sources[i].data = malloc(n_bytes + 1);
        if (sources[i].data != NULL && found != NULL)
            weir_bench_weights_copy(&self->weights, (size_t)(*found - self->weights.tensors),
                                    self->version, sources[i].data, n_bytes);
    }
    return sources;
}

static void free_sources(const weir_map_entry *entry, weir_tensor *sources)
{
    size_t n = entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1);
    for (size_t i = 0; i < n && sources != NULL; i++)
        free(sources[i].data);
    free(sources);
}

static void note_difference(checker *self, const char *name, const char *what)
{
    if (self->out->n_different++ == 0)
        snprintf(self->out->first_difference, sizeof(self->out->first_difference), "%s: %s", name,
                 what);
}

/* The live parameter of that name; the replica's order is the mapping's. */
static const weir_tensor *find_live(const checker *self, size_t parameter)
{
    const char *name = self->parameters[parameter].name;
    if (parameter < self->n_live && strcmp(self->live[parameter].name, name) == 0)
        return &self->live[parameter];
    for (size_t i = 0; i < self->n_live; i++) {
        if (strcmp(self->live[i].name, name) == 0)
            return &self->live[i];
    }
    return NULL;
}

static bool compare(checker *self, size_t parameter, const void *expected)
{
    const weir_parameter *wanted = &self->parameters[parameter];
    const weir_tensor *live = find_live(self, parameter);
    weir_bench_place place = self->bench->places[0];
    uint64_t n_bytes = bytes_of(wanted->dtype, &wanted->shape);
    if (live == NULL || live->dtype != wanted->dtype ||
        !weir_shape_equal(&live->shape, &wanted->shape)) {
        note_difference(self, wanted->name, "the replica has none of that dtype and shape");
        return true;
    }
    unsigned char *copy = place.cuda ? malloc(n_bytes + 1) : live->data;
    if (copy == NULL)
        return weir_cli_error("out of memory"), false;
    weir_status status = WEIR_OK;
    if (place.cuda)
        status = weir_cuda_copy(place.device, copy, live->data, n_bytes, NULL);
    if (place.cuda && status == WEIR_OK)
        status = weir_cuda_stream_wait(place.device, NULL);
    self->out->n_bytes += n_bytes;
    if (status == WEIR_OK && memcmp(copy, expected, n_bytes) != 0) {
        char what[64];
        uint64_t at = 0;
        while (copy[at] == ((const unsigned char *)expected)[at])
            at++;
        snprintf(what, sizeof(what), "byte %llu of %llu differs", (unsigned long long)at,
                 (unsigned long long)n_bytes);
        note_difference(self, wanted->name, what);
    }
    if (place.cuda)
        free(copy);
    return status == WEIR_OK || (weir_cli_fail(), false);
}

/* What is computed from one of the entry's parameters. */
static bool check_derived(checker *self, const weir_map_entry *entry, void *const *outputs)
{
    size_t n_derived, first = entry->first_parameter;
    const weir_derived *derived = weir_mapping_derived(self->mapping, &n_derived);
    bool good = true;
    for (size_t i = 0; i < n_derived && good; i++) {
        const weir_derived *one = &derived[i];
        const weir_parameter *to = &self->parameters[one->parameter];
        if (one->from < first || one->from >= first + entry->conversion->n_outputs)
            continue;
        bool scaled = one->from_scale != SIZE_MAX;
        void *out = malloc(bytes_of(to->dtype, &to->shape) + 1);
        if (out == NULL)
            return weir_cli_error("out of memory"), false;
        weir_status status =
            weir_derived_compute(one, self->parameters[one->from].dtype, outputs[one->from - first],
                                 scaled ? outputs[one->from_scale - first] : NULL,
                                 scaled ? &self->parameters[one->from_scale].shape : NULL, out);
        good = status == WEIR_OK ? compare(self, one->parameter, out) : (weir_cli_fail(), false);
        free(out);
    }
    return good;
}

static bool check_entry(checker *self, const weir_map_entry *given)
{
    weir_map_entry entry = *given;
    weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
    size_t n_outputs = entry.conversion->n_outputs;
    weir_tensor *sources = make_sources(self, given);
    bool good = sources != NULL;
    for (size_t i = 0; i < n_outputs; i++) {
        const weir_parameter *to = &self->parameters[entry.first_parameter + i];
        args.outputs[i] = malloc(bytes_of(to->dtype, &to->shape) + 1);
        good &= args.outputs[i] != NULL;
    }
    entry.sources = sources;
    args.reference = true;
    args.pool = self->pool;
    if (!good)
        weir_cli_error("no memory to check %s", entry.name);
    else if (weir_map_entry_convert(&entry, &args) != WEIR_OK)
        good = (weir_cli_fail(), false);
    for (size_t i = 0; i < n_outputs && good; i++)
        good = compare(self, entry.first_parameter + i, args.outputs[i]);
    good = good && check_derived(self, &entry, args.outputs);
    for (size_t i = 0; i < n_outputs; i++)
        free(args.outputs[i]);
    free_sources(given, sources);
    self->out->n_entries++;
    return good;
}

/* ---- which entries ---------------------------------------------------------------------------*/

/* True for n_wanted of n entries, spread evenly but for where each stretch is looked at, which the
 * version decides. */
static bool is_chosen(const checker *self, size_t i, size_t n)
{
    uint64_t n_wanted = self->bench->n_checked;
    if (n_wanted >= n || n_wanted == 0)
        return n_wanted != 0;
    uint64_t stretch = i * n_wanted / n, first = (stretch * n + n_wanted - 1) / n_wanted;
    uint64_t length = ((stretch + 1) * n + n_wanted - 1) / n_wanted - first;
    uint64_t mixed = (stretch + 1) * 0x9E3779B97F4A7C15ull + self->version;
    return i - first == (mixed >> 20) % length;
}

bool weir_bench_refit_check(const weir_bench_refit *bench, const weir_replica *replica,
                            uint64_t version, weir_bench_checked *out)
{
    checker self = { .bench = bench, .version = version, .out = out };
    size_t n_entries = 0;
    *out = (weir_bench_checked){ 0 };
    bool good = open_checker(&self);
    self.live = weir_replica_parameters(replica, &self.n_live);
    const weir_map_entry *entries = good ? weir_mapping_entries(self.mapping, &n_entries) : NULL;
    for (size_t i = 0; i < n_entries && good && !weir_cli_stopped(); i++) {
        if (is_chosen(&self, i, n_entries))
            good = check_entry(&self, &entries[i]);
    }
    if (good && self.n_live != self.n_parameters)
        note_difference(&self, bench->name, "another number of parameters than the model has");
    out->n_all_entries = n_entries;
    close_checker(&self);
    return good;
}
