/* SPDX-License-Identifier: Apache-2.0 */
/* bench_transport.c - `weir bench copy`: how fast a process reads another one's memory.
 *
 * The limit is memcpy of as many bytes by one thread, measured between the reads, so that whatever
 * disturbs the machine disturbs both. Every figure is the median of its rounds.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

#define N_ROUNDS 9
#define DEFAULT_BYTES ((uint64_t)256 << 20)
#define TIMEOUT_MS 30000u
#define BLOB_BYTES 65536

const char weir_usage_bench_copy[] =
    "usage: weir bench copy [--transport ucx|file] [--bytes N] [--json]\n"
    "\n"
    "Measures one-sided reads from another process, beside memcpy in the same run.\n"
    "  --transport NAME  this one alone; default: every one of this build\n"
    "  --bytes N         bytes of one read, with K, M or G; default 256M\n"
    "  --json            prints {\"limit_gb_per_s\", \"results\": [{\"transport\", \"tls\",\n"
    "                    \"gb_per_s\", \"fraction_of_limit\"}]}\n";

/* One way to measure. */
typedef struct way {
    const char *transport;
    const char *label; /* "shm": what is expected to carry the bytes */
    const char *tls;
    double gb_per_s, limit_gb_per_s;
} way;

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

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), by_value);
    return values[n / 2];
}

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
static int own(const way *how, const char *directory, uint64_t n_bytes, int out_fd, int done_fd)
{
    const weir_transport_ops *ops;
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.tls = how->tls;
    options.directory = directory;
    options.name = "bench-owner";
    weir_transport *transport = NULL;
    weir_region *region = NULL;
    weir_status status = weir_transport_get(how->transport, &ops);
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
static bool owner_open(const way *how, const char *directory, uint64_t n_bytes, owner *out)
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

static weir_status reader_open(const way *how, const char *directory, const owner *other,
                               reader *out)
{
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.tls = how->tls;
    options.directory = directory;
    options.name = "bench-reader";
    *out = (reader){ 0 };
    weir_status status = weir_transport_get(how->transport, &out->ops);
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
    double start = now_s();
    weir_status status = self->ops->post(self->peer, &copy, 1, &transfer);
    if (status != WEIR_OK)
        return status;
    status = weir_transfer_wait(transfer, TIMEOUT_MS);
    self->ops->finish(transfer);
    *out_seconds = now_s() - start;
    return status;
}

static weir_status run_rounds(reader *self, uint8_t *local, uint8_t *other, uint64_t n_bytes,
                              way *how)
{
    double reads[N_ROUNDS], copies[N_ROUNDS];
    for (int round = -1; round < N_ROUNDS; round++) { /* the first warms up and does not count */
        double seconds;
        weir_status status = read_once(self, local, n_bytes, &seconds);
        if (status != WEIR_OK)
            return status;
        if (local[0] != 0x5a || local[n_bytes - 1] != 0x5a) {
            fprintf(stderr, "weir: transport %s read other bytes than were written\n",
                    how->transport);
            return WEIR_ERR_CORRUPT;
        }
        double start = now_s();
        memcpy(local, other, n_bytes);
        double copy_seconds = now_s() - start;
        if (round < 0)
            continue;
        reads[round] = (double)n_bytes / seconds * 1e-9;
        copies[round] = (double)n_bytes / copy_seconds * 1e-9;
    }
    how->gb_per_s = median(reads, N_ROUNDS);
    how->limit_gb_per_s = median(copies, N_ROUNDS);
    return WEIR_OK;
}

static weir_status measure(way *how, const char *directory, uint64_t n_bytes)
{
    owner other;
    reader self = { 0 };
    weir_status status = WEIR_ERR_NO_MEMORY;
    uint8_t *local = malloc(n_bytes), *source = malloc(n_bytes);
    if (!owner_open(how, directory, n_bytes, &other)) {
        fprintf(stderr, "weir: transport %s (%s): the owner's process failed\n", how->transport,
                how->label);
        status = WEIR_ERR_PEER_LOST;
    } else if (local == NULL || source == NULL) {
        fprintf(stderr, "weir: no memory for twice %llu bytes\n", (unsigned long long)n_bytes);
    } else {
        memset(local, 1, n_bytes);
        memset(source, 2, n_bytes);
        status = reader_open(how, directory, &other, &self);
        if (status == WEIR_OK)
            status = run_rounds(&self, local, source, n_bytes, how);
        if (status != WEIR_OK)
            fprintf(stderr, "weir: %s\n", weir_last_error());
    }
    reader_close(&self);
    owner_close(&other);
    free(local);
    free(source);
    return status;
}

/* ---- the command -----------------------------------------------------------------------------*/

static bool parse_bytes(const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned shift = 0;
    if (*end == 'K' || *end == 'M' || *end == 'G')
        shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 30;
    if (shift != 0)
        end++;
    if (errno != 0 || text[0] < '0' || text[0] > '9' || *end != '\0' || number == 0 ||
        number > ((uint64_t)1 << 44) >> shift)
        return false;
    *out = (uint64_t)number << shift;
    return true;
}

static void print_table(const way *ways, size_t n_ways, uint64_t n_bytes, double limit)
{
    printf("reads of %llu bytes from another process; memcpy %.1f GB/s\n",
           (unsigned long long)n_bytes, limit);
    printf("%-10s %-8s %10s %10s\n", "transport", "over", "GB/s", "of memcpy");
    for (size_t i = 0; i < n_ways; i++)
        printf("%-10s %-8s %10.2f %10.2f\n", ways[i].transport, ways[i].label, ways[i].gb_per_s,
               ways[i].gb_per_s / ways[i].limit_gb_per_s);
}

static void print_json(const way *ways, size_t n_ways, double limit)
{
    json_t *results = json_array();
    for (size_t i = 0; i < n_ways; i++)
        json_array_append_new(results, json_pack("{s:s, s:s, s:f, s:f}", "transport",
                                                 ways[i].transport, "tls", ways[i].label,
                                                 "gb_per_s", ways[i].gb_per_s, "fraction_of_limit",
                                                 ways[i].gb_per_s / ways[i].limit_gb_per_s));
    json_t *root = json_pack("{s:f, s:o}", "limit_gb_per_s", limit, "results", results);
    json_dumpf(root, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(root);
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

static int run(const char *transport, uint64_t n_bytes, bool json)
{
    static const way all[] = { { "ucx", "shm", NULL, 0, 0 },
                               { "ucx", "tcp", "tcp", 0, 0 },
                               { "file", "page", NULL, 0, 0 } };
    way ways[sizeof(all) / sizeof(all[0])];
    double limits[sizeof(all) / sizeof(all[0])];
    size_t n_ways = 0;
    char directory[] = "/tmp/weir-bench-XXXXXX";
    if (mkdtemp(directory) == NULL) {
        fprintf(stderr, "weir: cannot make %s: %s\n", directory, strerror(errno));
        return 1;
    }
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]) && status == WEIR_OK; i++) {
        const weir_transport_ops *ops;
        if (transport != NULL ? strcmp(transport, all[i].transport) != 0
                              : weir_transport_get(all[i].transport, &ops) != WEIR_OK)
            continue;
        ways[n_ways] = all[i];
        status = measure(&ways[n_ways], directory, n_bytes);
        limits[n_ways] = ways[n_ways].limit_gb_per_s;
        n_ways++;
    }
    remove_files(directory);
    if (status != WEIR_OK || n_ways == 0)
        return 1;
    double limit = median(limits, n_ways);
    if (json)
        print_json(ways, n_ways, limit);
    else
        print_table(ways, n_ways, n_bytes, limit);
    return 0;
}

int weir_cmd_bench_copy(int argc, char **argv)
{
    static const struct option options[] = { { "transport", required_argument, NULL, 't' },
                                             { "bytes", required_argument, NULL, 'b' },
                                             { "json", no_argument, NULL, 'j' },
                                             WEIR_CLI_OPTIONS_END };
    const char *transport = NULL;
    const weir_transport_ops *ops;
    uint64_t n_bytes = DEFAULT_BYTES;
    bool json = false;
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        if (option == 't')
            transport = optarg;
        else if (option == 'j')
            json = true;
        else if (!parse_bytes(optarg, &n_bytes))
            return weir_cli_usage_error(argv[0], "--bytes takes bytes, as in 256M, got '%s'",
                                        optarg);
    }
    if (optind < argc)
        return weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);
    if (transport != NULL && weir_transport_get(transport, &ops) != WEIR_OK)
        return weir_cli_fail();
    return run(transport, n_bytes, json);
}
