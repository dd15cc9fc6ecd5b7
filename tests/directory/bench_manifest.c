/* SPDX-License-Identifier: Apache-2.0 */
/* bench_manifest.c - a manifest of many tensors from the process that offers it to one that reads
 * it: the time until its shards are there, and what both take at most.
 *
 *     bench_manifest [--tensors N] [--runs N] [--bounds]
 *
 * A reader is a process of its own, begun for one reading: nothing is warm, and its peak is its
 * own. Peaks are those of the resident set, over what it was before: for the reader before its
 * first call, for the server when it has its shards and nothing is encoded yet. Prints one JSON
 * object, the fastest reading and the largest peaks. --bounds: exit 1 beyond generous ones; peaks
 * are judged only where no sanitizer adds to them. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "directory/client.h"
#include "directory/service.h"
#include "directory/sha256.h"
#include "refit/manifest.h"
#include "weir/weir.h"

#define TIMEOUT_MS 30000
#define SHARD_BYTES 32768u
#define MOST_BYTES 64e6
#define MOST_MS 5000.0

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED true
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED false
#endif

static unsigned n_tensors = 100000, n_runs = 5;
static bool has_bounds;

static void die(const char *what)
{
    fprintf(stderr, "bench_manifest: %s: %s\n", what, weir_last_error());
    exit(2);
}

static void must(weir_status status, const char *what)
{
    if (status != WEIR_OK)
        die(what);
}

static void take(int fd, void *out, size_t n_bytes)
{
    if (read(fd, out, n_bytes) != (ssize_t)n_bytes)
        die("the other process has ended");
}

static void give(int fd, const void *bytes, size_t n_bytes)
{
    if (write(fd, bytes, n_bytes) != (ssize_t)n_bytes)
        die("write");
}

/* "VmRSS:" or "VmHWM:" of this process. */
static double status_bytes(const char *field)
{
    char line[128];
    double kib = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && kib < 0 && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, field, strlen(field)) == 0)
            kib = strtod(line + strlen(field), NULL);
    }
    if (kib < 0)
        die("/proc/self/status");
    fclose(file);
    return kib * 1024;
}

/* ---- server ----------------------------------------------------------------------------------*/

typedef struct offer {
    char address[WEIR_NAME_BYTES];
    char digest[WEIR_SHA256_HEX];
} offer;

typedef struct trainer {
    weir_shard *shards;
    weir_digest *digests;
    char (*names)[80];
    weir_buffer layout, manifest;
    offer offer;
} trainer;

static bool find_manifest(void *context, const weir_manifest_request *request,
                          weir_manifest_found *out)
{
    (void)request;
    const trainer *self = context;
    *out = (weir_manifest_found){ self->manifest.data, self->manifest.n_bytes, self->offer.digest };
    return true;
}

static void manifest_done(void *context)
{
    (void)context;
}

/* Experts of layers, of no shape that is special. */
static void make_shards(trainer *self)
{
    self->shards = calloc(n_tensors, sizeof(*self->shards));
    self->digests = calloc(n_tensors, sizeof(*self->digests));
    self->names = calloc(n_tensors, sizeof(*self->names));
    for (unsigned i = 0; i < n_tensors; i++) {
        snprintf(self->names[i], sizeof(self->names[i]),
                 "model.layers.%u.mlp.experts.%u.down_proj.weight", i / 512, i % 512);
        self->shards[i] = (weir_shard){ .name = self->names[i],
                                        .dtype = WEIR_F8_E4M3,
                                        .global_shape = { 2, { 256, 128 } },
                                        .box = { 2, { 0, 0 }, { 256, 128 } },
                                        .compile_target = WEIR_TARGET_DEEP_GEMM_FP8,
                                        .compile_metadata = "{\"block_size\":[128,128]}",
                                        .offset = (uint64_t)i * SHARD_BYTES,
                                        .n_bytes = SHARD_BYTES };
        self->digests[i] = (weir_digest){ i * 0x9E3779B97F4A7C15u, ~(uint64_t)i };
    }
}

static void encode(trainer *self)
{
    weir_arena arena;
    weir_arena_init(&arena, 0);
    must(weir_layout_encode(self->shards, n_tensors, &arena, &self->layout), "layout");
    weir_manifest_region region = { "key", 3, (uint64_t)n_tensors * SHARD_BYTES };
    const weir_manifest manifest = { .model = "m",
                                     .run = "run",
                                     .worker_id = "w",
                                     .transport = "ucx",
                                     .layout_signature = "0123456789abcdef",
                                     .version = 1,
                                     .n_ranks = 1,
                                     .address = "address",
                                     .address_bytes = 7,
                                     .regions = &region,
                                     .n_regions = 1,
                                     .layout = self->layout.data,
                                     .layout_bytes = self->layout.n_bytes,
                                     .digests = self->digests,
                                     .n_digests = n_tensors };
    must(weir_manifest_encode(&manifest, &arena, &self->manifest), "manifest");
    must(weir_sha256_hex(self->manifest.data, self->manifest.n_bytes, self->offer.digest),
         "digest");
    weir_arena_close(&arena);
}

/* Until `in` is closed. Says the offer, and in the end its peak. */
static void serve(int in, int out)
{
    trainer self = { 0 };
    weir_manifest_service *service;
    const weir_manifest_source source = { find_manifest, manifest_done, &self };
    char none;
    make_shards(&self);
    double before = status_bytes("VmRSS:");
    encode(&self);
    must(weir_manifest_service_open("127.0.0.1", &source, NULL, &service), "service");
    snprintf(self.offer.address, sizeof(self.offer.address), "%s",
             weir_manifest_service_address(service));
    give(out, &self.offer, sizeof(self.offer));
    if (read(in, &none, 1) != 0)
        die("read");
    weir_manifest_service_close(service);
    double peak = status_bytes("VmHWM:") - before;
    give(out, &peak, sizeof(peak));
    weir_buffer_free(&self.layout);
    weir_buffer_free(&self.manifest);
    free(self.shards), free(self.digests), free(self.names);
}

/* ---- reader ----------------------------------------------------------------------------------*/

typedef struct reading {
    double fetch_ms, decode_ms, peak_bytes;
    size_t wire_bytes, decoded_bytes;
} reading;

/* What a worker does with it: the digest is compared, the layout kept for the next version. */
static void decode(const weir_buffer *bytes, const offer *from, weir_arena *arena)
{
    char found[WEIR_SHA256_HEX];
    weir_manifest manifest;
    weir_buffer layout = { 0 };
    weir_shard *shards;
    size_t n_shards;
    must(weir_sha256_hex(bytes->data, bytes->n_bytes, found), "digest");
    if (strcmp(found, from->digest) != 0)
        die("the digest differs");
    must(weir_manifest_decode(bytes->data, bytes->n_bytes, arena, &manifest), "decode");
    must(weir_buffer_reserve(&layout, manifest.layout_bytes), "layout");
    memcpy(layout.data, manifest.layout, manifest.layout_bytes);
    must(weir_layout_decode(layout.data, manifest.layout_bytes, manifest.regions,
                            manifest.n_regions, arena, &shards, &n_shards),
         "decode layout");
    if (n_shards != n_tensors || manifest.n_digests != n_tensors)
        die("tensors are missing");
    weir_buffer_free(&layout);
}

static void read_once(const offer *from, int out)
{
    weir_directory_client *client;
    weir_buffer bytes = { 0 };
    weir_arena arena;
    char digest[WEIR_DIGEST_TEXT];
    double before = status_bytes("VmRSS:"), begun = weir_now_s();
    weir_arena_init(&arena, 0);
    must(weir_directory_client_open(from->address, TIMEOUT_MS, &client), "open");
    must(weir_directory_get_manifest(client, from->address, "trainer", "uid", "rank-0", &bytes.data,
                                     &bytes.capacity_bytes, &bytes.n_bytes, digest),
         "get_manifest");
    double fetched = weir_now_s();
    decode(&bytes, from, &arena);
    double decoded = weir_now_s();
    const reading it = { .fetch_ms = (fetched - begun) * 1e3,
                         .decode_ms = (decoded - fetched) * 1e3,
                         .peak_bytes = status_bytes("VmHWM:") - before,
                         .wire_bytes = bytes.n_bytes,
                         .decoded_bytes = arena.used_bytes };
    give(out, &it, sizeof(it));
    weir_arena_close(&arena);
    weir_buffer_free(&bytes);
    weir_directory_client_close(client);
}

/* ---- processes -------------------------------------------------------------------------------*/

typedef struct child {
    pid_t pid;
    int to, from;
} child;

/* A server when `of` is NULL, else its reader. */
static child begin(const offer *of)
{
    int down[2], up[2];
    if (pipe(down) != 0 || pipe(up) != 0)
        die("pipe");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        close(down[1]), close(up[0]);
        if (of == NULL)
            serve(down[0], up[1]);
        else
            read_once(of, up[1]);
        exit(0);
    }
    close(down[0]), close(up[1]);
    return (child){ pid, down[1], up[0] };
}

static void end(child *of)
{
    int status;
    close(of->from);
    if (waitpid(of->pid, &status, 0) != of->pid || status != 0)
        die("a process has failed");
}

static reading measure(const offer *from)
{
    reading best = { .fetch_ms = 1e9 };
    double peak_bytes = 0;
    for (unsigned i = 0; i < n_runs; i++) {
        reading it;
        child reader = begin(from);
        take(reader.from, &it, sizeof(it));
        close(reader.to);
        end(&reader);
        peak_bytes = it.peak_bytes > peak_bytes ? it.peak_bytes : peak_bytes;
        if (it.fetch_ms + it.decode_ms < best.fetch_ms + best.decode_ms)
            best = it;
    }
    best.peak_bytes = peak_bytes;
    return best;
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        { "tensors", 1, NULL, 0 }, { "runs", 1, NULL, 1 }, { "bounds", 0, NULL, 2 }, { 0 }
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 0)
            n_tensors = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 1)
            n_runs = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 2)
            has_bounds = true;
        else
            exit(2);
    }
    if (n_tensors == 0 || n_runs == 0)
        exit(2);
}

int main(int argc, char **argv)
{
    offer from;
    double server_bytes;
    read_options(argc, argv);
    child server = begin(NULL);
    take(server.from, &from, sizeof(from));
    reading best = measure(&from);
    close(server.to);
    take(server.from, &server_bytes, sizeof(server_bytes));
    end(&server);
    printf("{\"tensors\":%u,\"fetch_ms\":%.1f,\"decode_ms\":%.1f,\"wire_bytes\":%zu,"
           "\"decoded_bytes\":%zu,\"reader_peak_bytes\":%.0f,\"server_peak_bytes\":%.0f}\n",
           n_tensors, best.fetch_ms, best.decode_ms, best.wire_bytes, best.decoded_bytes,
           best.peak_bytes, server_bytes);
    bool is_large = !IS_SANITIZED && (best.peak_bytes > MOST_BYTES || server_bytes > MOST_BYTES);
    return has_bounds && (is_large || best.fetch_ms + best.decode_ms > MOST_MS);
}
