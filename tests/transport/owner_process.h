/* SPDX-License-Identifier: Apache-2.0 */
/* owner_process.h - the other process of a transport test: owns regions, or reads someone's.
 *
 * A test program starts itself again (fork and exec, so that no library state is shared) and sends
 * it commands over a socket pair. Kill it, stop it, or let it go: owner_close() ends it either way.
 */
#ifndef WEIR_TESTS_OWNER_PROCESS_H
#define WEIR_TESTS_OWNER_PROCESS_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "transport/memory_place.h"
#include "weir/transport.h"

#define OWNER_REGIONS 8
#define OWNER_BLOB 65536

typedef enum owner_op {
    OWNER_ADDRESS,  /* gives the transport's address */
    OWNER_ALLOCATE, /* region, n_bytes */
    OWNER_EXPOSE,   /* region, n_bytes */
    OWNER_SEAL,     /* region, seed, text: fills it, seals it under label `text`, gives the key */
    OWNER_RELEASE,  /* region */
    OWNER_COMPARE,  /* region, seed: whether it holds what OWNER_SEAL would fill it with */
    OWNER_EXPOSE_PART, /* region, n_bytes, seed: so many bytes from byte `seed` of region 0 */
    OWNER_READ,        /* seed, n_bytes, blob: address and key of another; reads and compares */
    OWNER_FORK,        /* gives the pid of a child that sleeps, with all of its parent's files */
} owner_op;

typedef struct owner_request {
    owner_op op;
    uint32_t region, seed;
    uint64_t n_bytes;
    char text[64];
    uint32_t address_bytes, blob_bytes; /* blob: an address, then a key */
    uint8_t blob[OWNER_BLOB];
} owner_request;

typedef struct owner_reply {
    weir_status status;
    uint32_t blob_bytes;
    uint8_t blob[OWNER_BLOB]; /* what was asked for; the error line where status is none of OK */
} owner_reply;

typedef struct owner {
    pid_t pid; /* 0 once it was killed and reaped */
    int fd;
    owner_reply reply;
} owner;

/* Called for every byte of many mebibytes: a sanitizer would make the suite ten times as long. */
#define OWNER_BULK __attribute__((no_sanitize("address", "thread", "undefined")))

OWNER_BULK static inline uint8_t owner_byte(uint64_t i, uint32_t seed)
{
    return (uint8_t)(((i + 1) * (2654435761u + 2 * (uint64_t)seed)) >> 13);
}

OWNER_BULK static inline void owner_fill(uint8_t *data, uint64_t n_bytes, uint32_t seed)
{
    for (uint64_t i = 0; i < n_bytes; i++)
        data[i] = owner_byte(i, seed);
}

/* The first byte of data that is not byte `from` onwards of a filled region; n_bytes if none. */
OWNER_BULK static inline uint64_t owner_compare(const uint8_t *data, uint64_t from,
                                                uint64_t n_bytes, uint32_t seed)
{
    uint64_t i = 0;
    while (i < n_bytes && data[i] == owner_byte(from + i, seed))
        i++;
    return i;
}

static inline bool owner_move(int fd, void *data, size_t n_bytes, bool out)
{
    uint8_t *at = data;
    while (n_bytes > 0) {
        ssize_t n = out ? send(fd, at, n_bytes, MSG_NOSIGNAL) : recv(fd, at, n_bytes, 0);
        if (n <= 0)
            return false;
        at += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

/* ---- in the child ----------------------------------------------------------------------------*/

typedef struct owner_state {
    const weir_transport_ops *ops;
    weir_transport *transport;
    weir_region *regions[OWNER_REGIONS];
    uint64_t n_bytes[OWNER_REGIONS];
    memory_place place; /* of what it exposes */
    void *exposed[OWNER_REGIONS];
} owner_state;

static inline void owner_give(owner_reply *reply, const void *data, size_t n_bytes)
{
    reply->blob_bytes = (uint32_t)n_bytes;
    memcpy(reply->blob, data, n_bytes);
}

/* Whatever memory the region is of. */
static inline weir_status owner_fill_region(owner_state *state, const owner_request *request)
{
    uint64_t n_bytes = state->n_bytes[request->region];
    void *data = state->ops->region_data(state->regions[request->region]);
    if (!place_is_gpu(&state->place)) {
        owner_fill(data, n_bytes, request->seed);
        return WEIR_OK;
    }
    uint8_t *bytes = malloc(n_bytes + 1);
    owner_fill(bytes, n_bytes, request->seed);
    weir_status status = place_copy(&state->place, data, bytes, n_bytes);
    free(bytes);
    return status;
}

static inline weir_status owner_compare_region(owner_state *state, const owner_request *request)
{
    uint64_t n_bytes = state->n_bytes[request->region];
    uint8_t *bytes = malloc(n_bytes + 1);
    weir_status status = place_copy(
        &state->place, bytes, state->ops->region_data(state->regions[request->region]), n_bytes);
    if (status == WEIR_OK && owner_compare(bytes, 0, n_bytes, request->seed) != n_bytes)
        status = WEIR_ERR_CORRUPT;
    free(bytes);
    return status;
}

/* Two tensors, the second of them the middle part of a larger one. */
static inline weir_status owner_seal(owner_state *state, const owner_request *request,
                                     owner_reply *reply)
{
    weir_region *region = state->regions[request->region];
    uint64_t n_bytes = state->n_bytes[request->region], half = n_bytes / 2, rest = n_bytes - half;
    weir_status status = owner_fill_region(state, request);
    if (status != WEIR_OK)
        return status;
    weir_shard shards[2] = {
        { .name = "first",
          .dtype = WEIR_U8,
          .global_shape = { 1, { half } },
          .box = { 1, { 0 }, { half } },
          .region = request->region,
          .n_bytes = half },
        { .name = "second",
          .dtype = WEIR_U8,
          .global_shape = { 1, { rest + 20 } },
          .box = { 1, { 10 }, { rest + 10 } },
          .region = request->region,
          .offset = half,
          .n_bytes = rest },
    };
    weir_seal seal = WEIR_SEAL_INIT;
    seal.model = "conformance/model";
    seal.label = request->text;
    seal.shards = shards;
    seal.n_shards = 2;
    seal.region = request->region;
    status = state->ops->seal(region, &seal);
    const void *key;
    size_t key_bytes;
    if (status == WEIR_OK)
        status = state->ops->region_key(region, &key, &key_bytes);
    if (status == WEIR_OK)
        owner_give(reply, key, key_bytes);
    return status;
}

static inline weir_status owner_read(owner_state *state, const owner_request *request)
{
    const weir_transport_ops *ops = state->ops;
    weir_peer *peer = NULL;
    weir_remote_region *remote = NULL;
    weir_transfer *transfer = NULL;
    uint8_t *data = malloc(request->n_bytes);
    weir_status status =
        ops->connect(state->transport, request->blob, request->address_bytes, "other", 5000, &peer);
    if (status == WEIR_OK)
        status = ops->import(peer, request->blob + request->address_bytes,
                             request->blob_bytes - request->address_bytes, &remote);
    weir_copy copy = { remote, 0, data, request->n_bytes };
    if (status == WEIR_OK)
        status = ops->post(peer, &copy, 1, &transfer);
    if (status == WEIR_OK)
        status = weir_transfer_wait(transfer, 5000);
    if (status == WEIR_OK &&
        owner_compare(data, 0, request->n_bytes, request->seed) != request->n_bytes)
        status = WEIR_ERR_CORRUPT;
    ops->finish(transfer);
    ops->forget(remote);
    ops->disconnect(peer);
    free(data);
    return status;
}

static inline weir_status owner_expose(owner_state *state, uint32_t region, uint64_t n_bytes)
{
    weir_status status = place_allocate(&state->place, n_bytes, &state->exposed[region]);
    if (status != WEIR_OK)
        return status;
    return state->ops->expose(state->transport, state->exposed[region], n_bytes,
                              &state->regions[region]);
}

static inline weir_status owner_expose_part(owner_state *state, const owner_request *request)
{
    uint32_t region = request->region;
    return state->ops->expose(state->transport, (uint8_t *)state->exposed[0] + request->seed,
                              request->n_bytes, &state->regions[region]);
}

static inline weir_status owner_fork(owner_reply *reply)
{
    pid_t child = fork();
    if (child == 0) {
        sleep(20);
        _exit(0);
    }
    owner_give(reply, &child, sizeof(child));
    return child > 0 ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static inline weir_status owner_obey(owner_state *state, const owner_request *request,
                                     owner_reply *reply)
{
    uint32_t region = request->region;
    const void *data;
    size_t n_bytes;
    weir_status status = WEIR_OK;
    switch (request->op) {
    case OWNER_ADDRESS:
        status = state->ops->address(state->transport, &data, &n_bytes);
        if (status == WEIR_OK)
            owner_give(reply, data, n_bytes);
        return status;
    case OWNER_ALLOCATE:
        state->n_bytes[region] = request->n_bytes;
        return state->ops->allocate(state->transport, request->n_bytes, &state->regions[region]);
    case OWNER_EXPOSE:
        state->n_bytes[region] = request->n_bytes;
        return owner_expose(state, region, request->n_bytes);
    case OWNER_EXPOSE_PART:
        state->n_bytes[region] = request->n_bytes;
        return owner_expose_part(state, request);
    case OWNER_SEAL:
        return owner_seal(state, request, reply);
    case OWNER_COMPARE:
        return owner_compare_region(state, request);
    case OWNER_RELEASE:
        state->ops->release(state->regions[region]);
        state->regions[region] = NULL;
        return WEIR_OK;
    case OWNER_READ:
        return owner_read(state, request);
    case OWNER_FORK:
        return owner_fork(reply);
    }
    return WEIR_ERR_INVALID;
}

/* tls: of UCX; for cuda_ipc the place of what it exposes. */
static inline int owner_main(const char *transport, const char *tls, const char *directory, int fd)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    owner_state state = { .place = place_of(strcmp(transport, "cuda_ipc") == 0 ? tls : "host") };
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.device = state.place.device;
    options.tls = tls[0] != '\0' ? tls : NULL;
    options.directory = directory;
    options.name = "owner";
    owner_request *request = malloc(sizeof(*request));
    owner_reply *reply = malloc(sizeof(*reply));
    weir_status status = weir_transport_get(transport, &state.ops);
    if (status == WEIR_OK)
        status = state.ops->open(&options, &state.transport);
    while (owner_move(fd, request, sizeof(*request), false)) {
        reply->blob_bytes = 0;
        if (state.transport != NULL)
            status = owner_obey(&state, request, reply);
        reply->status = status;
        if (status != WEIR_OK)
            owner_give(reply, weir_last_error(), strlen(weir_last_error()) + 1);
        if (!owner_move(fd, reply, sizeof(*reply), true))
            break;
    }
    for (size_t i = 0; state.transport != NULL && i < OWNER_REGIONS; i++)
        state.ops->release(state.regions[i]);
    if (state.transport != NULL)
        state.ops->close(state.transport);
    for (size_t i = 0; i < OWNER_REGIONS; i++)
        if (state.exposed[i] != NULL)
            place_free(&state.place, state.exposed[i], state.n_bytes[i]);
    free(request);
    free(reply);
    return 0;
}

/* ---- in the test -----------------------------------------------------------------------------*/

/* A process under the thread sanitizer sleeps for a second at its end, and there are a hundred. */
static inline void owner_hurry(void)
{
    const char *given = getenv("TSAN_OPTIONS");
    char options[1024];
    snprintf(options, sizeof(options), "%s%satexit_sleep_ms=0", given ? given : "",
             given ? ":" : "");
    setenv("TSAN_OPTIONS", options, 1);
}

static inline owner *owner_open(const char *transport, const char *tls, const char *directory)
{
    int fds[2];
    owner *other = calloc(1, sizeof(*other));
    if (other == NULL || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        return NULL;
    other->pid = fork();
    if (other->pid == 0) {
        char fd[16];
        snprintf(fd, sizeof(fd), "%d", fds[1]);
        close(fds[0]);
        owner_hurry();
        execl("/proc/self/exe", "owner", transport, tls, directory, fd, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    other->fd = fds[0];
    return other;
}

static inline void owner_send(owner *other, const owner_request *request)
{
    owner_move(other->fd, (void *)(uintptr_t)request, sizeof(*request), true);
}

/* WEIR_ERR_INTERNAL when the process is gone. */
static inline weir_status owner_receive(owner *other)
{
    if (!owner_move(other->fd, &other->reply, sizeof(other->reply), false))
        return WEIR_ERR_INTERNAL;
    return other->reply.status;
}

static inline weir_status owner_call(owner *other, owner_op op, uint32_t region, uint64_t n_bytes,
                                     uint32_t seed, const char *text)
{
    owner_request *request = calloc(1, sizeof(*request));
    request->op = op;
    request->region = region;
    request->n_bytes = n_bytes;
    request->seed = seed;
    snprintf(request->text, sizeof(request->text), "%s", text);
    owner_send(other, request);
    free(request);
    return owner_receive(other);
}

static inline void owner_kill(owner *other)
{
    kill(other->pid, SIGKILL);
}

static inline void owner_reap(owner *other)
{
    waitpid(other->pid, NULL, 0);
    other->pid = 0;
}

/* The process ends by itself once its socket closes. Gives its wait status: 0 when all went well.
 */
static inline int owner_close(owner *other)
{
    int code = 0;
    if (other->pid != 0)
        kill(other->pid, SIGCONT); /* before it ends: this would undo the stop of a leak checker */
    close(other->fd);
    if (other->pid != 0)
        waitpid(other->pid, &code, 0);
    free(other);
    return code;
}

#endif
