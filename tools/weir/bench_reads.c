/* SPDX-License-Identifier: Apache-2.0 */
/* bench_reads.c - how fast a process reads another one's memory through a transport.
 *
 * Between the reads as many bytes are copied by memcpy in one thread, so that whatever disturbs the
 * machine disturbs both.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_copy.h"
#include "median.h"

#define N_ROUNDS WEIR_BENCH_COPY_ROUNDS
#define TIMEOUT_MS 30000u
#define BLOB_BYTES 65536

/* What the owner's process tells this one. */
typedef struct blob {
    uint32_t n_bytes;
    uint8_t data[BLOB_BYTES];
} blob;

typedef struct owner {
    pid_t pid;
    int fd; /* the owner ends when it closes */
    blob *address, *key;
} owner;

static bool move_all(int fd, void *data, size_t n_bytes, bool out)
{
    uint8_t *at = data;
    while (n_bytes > 0) {
        ssize_t n = out ? write(fd, at, n_bytes) : read(fd, at, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

/* ---- the owner -------------------------------------------------------------------------------*/

static bool tell(int fd, const void *data, size_t n_bytes)
{
    blob *message = calloc(1, sizeof(*message));
    bool told = false;
    if (message != NULL && n_bytes <= BLOB_BYTES) {
        message->n_bytes = (uint32_t)n_bytes;
        memcpy(message->data, data, n_bytes);
        told = move_all(fd, message, sizeof(*message), true);
    }
    free(message);
    return told;
}

static weir_status publish(const weir_transport_ops *ops, weir_transport *transport,
                           weir_region *region, uint64_t n_bytes, int fd)
{
    weir_shard shard = { .name = "bench", .dtype = WEIR_U8, .n_bytes = n_bytes };
    shard.global_shape = (weir_shape){ 1, { n_bytes } };
    shard.box = weir_box_whole(&shard.global_shape);
    weir_seal seal = WEIR_SEAL_INIT;
    seal.model = "bench";
    seal.label = "copy";
    seal.shards = &shard;
    seal.n_shards = 1;
    const void *key, *address;
    size_t key_bytes, address_bytes;
    memset(ops->region_data(region), 0x5a, n_bytes);
    weir_status status = ops->seal(region, &seal);
    if (status == WEIR_OK)
        status = ops->region_key(region, &key, &key_bytes);
    if (status == WEIR_OK)
        status = ops->address(transport, &address, &address_bytes);
    if (status == WEIR_OK && (!tell(fd, address, address_bytes) || !tell(fd, key, key_bytes)))
        status = WEIR_ERR_IO;
    return status;
}

/* Shares one region and sleeps until the reader is done with it. */
static int own(const weir_bench_way *how, const char *directory, uint64_t n_bytes, int out_fd,
               int done_fd)
{
    const weir_transport_ops *ops;
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.tls = how->tls;
    options.directory = directory;
    options.name = "bench-owner";
    weir_transport *transport = NULL;
    weir_region *region = NULL;
    weir_status status = weir_transport_get(how->name, &ops);
    if (status == WEIR_OK)
        status = ops->open(&options, &transport);
    if (status == WEIR_OK)
        status = ops->allocate(transport, n_bytes, &region);
    if (status == WEIR_OK)
        status = publish(ops, transport, region, n_bytes, out_fd);
    if (status != WEIR_OK)
        fprintf(stderr, "weir: owner: %s\n", weir_last_error());
    char byte;
    while (status == WEIR_OK && read(done_fd, &byte, 1) < 0 && errno == EINTR) {
    }
    if (transport != NULL) {
        ops->release(region);
        ops->close(transport);
    }
    return status == WEIR_OK ? 0 : 1;
}

static void owner_close(owner *other)
{
    if (other->fd >= 0)
        close(other->fd);
    if (other->pid > 0)
        waitpid(other->pid, NULL, 0);
    free(other->address);
    free(other->key);
}

/* Forks before this process has touched the transport: its libraries do not survive a fork. */
static bool owner_open(const weir_bench_way *how, const char *directory, uint64_t n_bytes,
                       owner *out)
{
    int from[2], to[2];
    *out = (owner){ .fd = -1, .address = malloc(sizeof(blob)), .key = malloc(sizeof(blob)) };
    if (out->address == NULL || out->key == NULL || pipe(from) != 0)
        return false;
    if (pipe(to) != 0) {
        close(from[0]);
        close(from[1]);
        return false;
    }
    out->pid = fork();
    if (out->pid == 0) {
        close(from[0]);
        close(to[1]);
        _exit(own(how, directory, n_bytes, from[1], to[0]));
    }
    close(from[1]);
    close(to[0]);
    out->fd = to[1];
    bool told = out->pid > 0 && move_all(from[0], out->address, sizeof(blob), false) &&
                move_all(from[0], out->key, sizeof(blob), false);
    close(from[0]);
    return told;
}

/* ---- the reader ------------------------------------------------------------------------------*/

typedef struct reader {
    const weir_transport_ops *ops;
    weir_transport *transport;
    weir_peer *peer;
    weir_remote_region *remote;
} reader;

static void reader_close(reader *self)
{
    if (self->transport == NULL)
        return;
    self->ops->forget(self->remote);
    self->ops->disconnect(self->peer);
    self->ops->close(self->transport);
}

static weir_status reader_open(const weir_bench_way *how, const char *directory, const owner *other,
                               reader *out)
{
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.tls = how->tls;
    options.directory = directory;
    options.name = "bench-reader";
    *out = (reader){ 0 };
    weir_status status = weir_transport_get(how->name, &out->ops);
    if (status == WEIR_OK)
        status = out->ops->open(&options, &out->transport);
    if (status == WEIR_OK)
        status = out->ops->connect(out->transport, other->address->data, other->address->n_bytes,
                                   "owner", TIMEOUT_MS, &out->peer);
    if (status == WEIR_OK)
        status = out->ops->import(out->peer, other->key->data, other->key->n_bytes, &out->remote);
    return status;
}

static weir_status read_once(reader *self, void *local, uint64_t n_bytes, double *out_seconds)
{
    weir_copy copy = { self->remote, 0, local, n_bytes };
    weir_transfer *transfer;
    double start = weir_cli_now();
    weir_status status = self->ops->post(self->peer, &copy, 1, &transfer);
    if (status != WEIR_OK)
        return status;
    status = weir_transfer_wait(transfer, TIMEOUT_MS);
    self->ops->finish(transfer);
    *out_seconds = weir_cli_now() - start;
    return status;
}

static weir_status run_rounds(reader *self, uint8_t *local, uint8_t *other, uint64_t n_bytes,
                              weir_bench_way *how)
{
    double reads[N_ROUNDS], copies[N_ROUNDS];
    for (int round = -1; round < N_ROUNDS; round++) { /* the first warms up and does not count */
        double seconds;
        weir_status status = read_once(self, local, n_bytes, &seconds);
        if (status != WEIR_OK)
            return status;
        if (local[0] != 0x5a || local[n_bytes - 1] != 0x5a) {
            snprintf(how->why_not, sizeof(how->why_not), "other bytes arrived than were written");
            return WEIR_ERR_CORRUPT;
        }
        double start = weir_cli_now();
        memcpy(local, other, n_bytes);
        double copy_seconds = weir_cli_now() - start;
        if (round < 0)
            continue;
        reads[round] = (double)n_bytes / seconds * 1e-9;
        copies[round] = (double)n_bytes / copy_seconds * 1e-9;
    }
    how->gb_per_s = weir_median(reads, N_ROUNDS);
    how->limit_gb_per_s = weir_median(copies, N_ROUNDS);
    return WEIR_OK;
}

static void measure(weir_bench_way *how, const char *directory, uint64_t n_bytes)
{
    owner other;
    reader self = { 0 };
    uint8_t *local = malloc(n_bytes), *source = malloc(n_bytes);
    bool owned = owner_open(how, directory, n_bytes, &other);
    how->failed = true;
    if (!owned) {
        snprintf(how->why_not, sizeof(how->why_not), "the owner's process failed");
    } else if (local == NULL || source == NULL) {
        snprintf(how->why_not, sizeof(how->why_not), "no memory for twice %llu bytes",
                 (unsigned long long)n_bytes);
    } else {
        memset(local, 1, n_bytes);
        memset(source, 2, n_bytes);
        how->failed = false;
        weir_status status = reader_open(how, directory, &other, &self);
        if (status == WEIR_OK)
            status = run_rounds(&self, local, source, n_bytes, how);
        if (status != WEIR_OK)
            weir_bench_way_fail(how, status);
    }
    reader_close(&self);
    owner_close(&other);
    free(local);
    free(source);
}

static void remove_files(const char *directory)
{
    static const char *const names[] = { "bench/copy.ready", "bench/copy.manifest.json",
                                         "bench/copy.safetensors", "bench", "" };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[256];
        snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
        remove(path);
    }
}

void weir_bench_reads(const weir_bench_copy *bench, weir_bench_way *way)
{
    const weir_transport_ops *ops;
    char directory[] = "/tmp/weir-bench-XXXXXX";
    weir_status status = weir_transport_get(way->name, &ops);
    if (status != WEIR_OK) {
        weir_bench_way_fail(way, status);
        return;
    }
    if (mkdtemp(directory) == NULL) {
        way->failed = true;
        snprintf(way->why_not, sizeof(way->why_not), "cannot make %s: %s", directory,
                 strerror(errno));
        return;
    }
    measure(way, directory, bench->n_bytes);
    remove_files(directory);
}

void weir_bench_memcpy(const weir_bench_copy *bench, weir_bench_way *way)
{
    double rates[N_ROUNDS];
    uint8_t *to = malloc(bench->n_bytes), *from = malloc(bench->n_bytes);
    if (to == NULL || from == NULL) {
        way->failed = true;
        snprintf(way->why_not, sizeof(way->why_not), "no memory for twice %llu bytes",
                 (unsigned long long)bench->n_bytes);
    } else {
        memset(to, 1, bench->n_bytes);
        memset(from, 2, bench->n_bytes);
        for (int round = 0; round < N_ROUNDS; round++) {
            double start = weir_cli_now();
            memcpy(to, from, bench->n_bytes);
            __asm__ volatile("" : : "r"(to) : "memory");
            rates[round] = (double)bench->n_bytes / (weir_cli_now() - start) * 1e-9;
        }
        way->gb_per_s = weir_median(rates, N_ROUNDS);
    }
    free(to);
    free(from);
}
