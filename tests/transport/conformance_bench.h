/* SPDX-License-Identifier: Apache-2.0 */
/* conformance_bench.h - what a case of test_conformance.c works with: a transport in one setting,
 * a process that owns bytes, and this process's sight of them. */
#ifndef WEIR_TESTS_CONFORMANCE_BENCH_H
#define WEIR_TESTS_CONFORMANCE_BENCH_H

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/owner_process.h"
#include "transport/transport_key.h"

#define MIB ((uint64_t)1 << 20)
#define LARGE (64 * MIB)
#define WAIT_MS 5000u

/* One transport in one setting. */
typedef struct setting {
    const char *name, *transport, *tls;
    bool
        owner_answers; /* a read takes the owner's processor: it stands still when the owner does */
    const char *lands; /* where reads land (memory_place.h); NULL: on the host */
    unsigned n_gpus;   /* that it takes */
} setting;

static const setting settings[] = {
    { "ucx", "ucx", "", false, NULL, 0 },
    { "ucx over tcp", "ucx", "tcp", true, NULL, 0 },
    { "ucx over shared memory", "ucx", "posix,sysv,cma,self", false, NULL, 0 },
    { "ucx over shared memory without cma", "ucx", "posix,sysv,self", false, NULL, 0 },
    { "file", "file", "", false, NULL, 0 },
    { "cuda_ipc", "cuda_ipc", "malloc 0", false, "malloc 0", 1 },
    { "cuda_ipc to host memory", "cuda_ipc", "malloc 0", false, "host", 1 },
    { "cuda_ipc to pinned memory", "cuda_ipc", "shareable 0", false, "pinned", 1 },
    { "cuda_ipc of memory in pieces", "cuda_ipc", "pieces 0", false, "shareable 0", 1 },
    { "cuda_ipc between GPUs", "cuda_ipc", "malloc 1", false, "malloc 0", 2 },
    { "cuda_ipc of shareable memory between GPUs", "cuda_ipc", "shareable 1", false, "malloc 0",
      2 },
    { "cuda_ipc of memory in pieces between GPUs", "cuda_ipc", "pieces 1", false, "malloc 0", 2 },
};
#define N_SETTINGS (sizeof(settings) / sizeof(settings[0]))

/* What a case works with: the other process, and this one's half. */
typedef struct bench {
    const setting *setting;
    const weir_transport_ops *ops;
    char directory[64];
    owner *owner;
    weir_transport *transport;
    weir_peer *peer;
    weir_remote_region *remote;
    uint8_t *key;
    size_t key_bytes;
    uint8_t *address;
    size_t address_bytes;
    memory_place place; /* of what is read to */
    uint8_t *local;     /* where reads land */
    uint8_t *data;      /* what the host sees of it: the same, or a copy by lay() and look() */
} bench;

static inline uint8_t *copy_of(const owner_reply *reply, size_t *out_n_bytes)
{
    uint8_t *copy = malloc(reply->blob_bytes);
    memcpy(copy, reply->blob, reply->blob_bytes);
    *out_n_bytes = reply->blob_bytes;
    return copy;
}

#define assert_ok(call)                                                                  \
    do {                                                                                 \
        weir_status status_ = (call);                                                    \
        if (status_ != WEIR_OK)                                                          \
            fail_msg("%s: %s: %s", #call, weir_status_name(status_), weir_last_error()); \
    } while (0)

/* Says why the setting cannot run here; "" when it can. A GPU machine must not pass by skipping. */
static inline const char *bench_lacks(const setting *chosen)
{
    const weir_transport_ops *ops;
    unsigned n_gpus = 0;
    if (weir_transport_get(chosen->transport, &ops) != WEIR_OK)
        return weir_last_error();
    if (chosen->n_gpus > 0 && weir_cuda_devices(&n_gpus) == WEIR_OK && n_gpus < chosen->n_gpus)
        return "there are fewer than two GPUs";
    return "";
}

static inline int bench_open(void **state)
{
    const setting *chosen = *state;
    bench *b = calloc(1, sizeof(*b));
    *state = b;
    b->setting = chosen;
    if (bench_lacks(chosen)[0] != '\0')
        return 0; /* every case skips itself */
    weir_transport_get(chosen->transport, &b->ops);
    snprintf(b->directory, sizeof(b->directory), "/tmp/weir-conformance-XXXXXX");
    if (mkdtemp(b->directory) == NULL)
        return -1;
    b->owner = owner_open(chosen->transport, chosen->tls, b->directory);
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.tls = chosen->tls[0] != '\0' ? chosen->tls : NULL;
    options.directory = b->directory;
    options.name = "reader";
    if (b->ops->open(&options, &b->transport) != WEIR_OK)
        return -1;
    b->place = place_of(chosen->lands != NULL ? chosen->lands : "host");
    b->data = calloc(1, LARGE + 4096);
    b->local = b->data;
    return place_is(&b->place, "host") ||
                   place_allocate(&b->place, LARGE + 4096, (void **)&b->local) == WEIR_OK
               ? 0
               : -1;
}

static inline int remove_entry(const char *path, const struct stat *info, int kind,
                               struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static inline int bench_close(void **state)
{
    bench *b = *state;
    int code = 0;
    weir_alloc_fail_at(0);
    if (b->ops != NULL) {
        b->ops->forget(b->remote);
        b->ops->disconnect(b->peer);
        b->ops->close(b->transport);
        code = b->owner != NULL ? owner_close(b->owner) : 0;
        remove_tree(b->directory);
    }
    if (b->local != b->data)
        place_free(&b->place, b->local, LARGE + 4096);
    free(b->key);
    free(b->address);
    free(b->data);
    free(b);
    if (code != 0)
        print_message("the owner's process ended with wait status %d\n", code);
    return code;
}

static inline bench *bench_of(void **state)
{
    bench *b = *state;
    if (b->ops == NULL) {
        const char *why = bench_lacks(b->setting), *required = getenv("WEIR_TEST_REQUIRE_GPU");
        if (b->setting->n_gpus > 0 && required != NULL &&
            strtoul(required, NULL, 10) >= b->setting->n_gpus)
            fail_msg("%u GPUs are required: %s", b->setting->n_gpus, why);
        print_message("skipped: %s: %s\n", b->setting->name, why);
        skip();
    }
    return b;
}

/* Bytes `at` of what the host sees go where reads land; and back. */
static inline void lay(bench *b, uint64_t at, uint64_t n_bytes)
{
    if (b->local != b->data)
        assert_ok(place_copy(&b->place, b->local + at, b->data + at, n_bytes));
}

static inline void look(bench *b, uint64_t at, uint64_t n_bytes)
{
    if (b->local != b->data)
        assert_ok(place_copy(&b->place, b->data + at, b->local + at, n_bytes));
}

static inline void need(const bench *b, uint32_t cap, const char *name)
{
    if ((b->ops->caps & cap) != 0)
        return;
    print_message("skipped: transport %s has no %s\n", b->ops->name, name);
    skip();
}

static inline void owner_must(bench *b, owner_op op, uint32_t region, uint64_t n_bytes,
                              uint32_t seed, const char *text)
{
    weir_status status = owner_call(b->owner, op, region, n_bytes, seed, text);
    if (status != WEIR_OK)
        fail_msg("owner: %s: %s", weir_status_name(status),
                 status == WEIR_ERR_INTERNAL ? "its process is gone"
                                             : (const char *)b->owner->reply.blob);
}

static inline void seal(bench *b, uint32_t seed, const char *label)
{
    owner_must(b, OWNER_SEAL, 0, 0, seed, label);
    free(b->key);
    b->key = copy_of(&b->owner->reply, &b->key_bytes);
}

static inline void ask_address(bench *b)
{
    owner_must(b, OWNER_ADDRESS, 0, 0, 0, "");
    free(b->address);
    b->address = copy_of(&b->owner->reply, &b->address_bytes);
}

static inline void connect_owner(bench *b)
{
    ask_address(b);
    assert_ok(
        b->ops->connect(b->transport, b->address, b->address_bytes, "owner 0", WAIT_MS, &b->peer));
    assert_string_equal(b->peer->who, "owner 0");
}

/* Region 0 of the other process, filled with `seed`, and this process's sight of it. */
static inline void share(bench *b, owner_op op, uint64_t n_bytes, uint32_t seed)
{
    owner_must(b, op, 0, n_bytes, 0, "");
    seal(b, seed, "v1");
    connect_owner(b);
    assert_ok(b->ops->import(b->peer, b->key, b->key_bytes, &b->remote));
}

static inline weir_status read_copies(bench *b, const weir_copy *copies, size_t n_copies,
                                      unsigned ms)
{
    weir_transfer *transfer = NULL;
    weir_status status = b->ops->post(b->peer, copies, n_copies, &transfer);
    if (status == WEIR_OK)
        status = weir_transfer_wait(transfer, ms);
    b->ops->finish(transfer);
    return status;
}

static inline void assert_reads(bench *b, uint64_t offset, uint64_t n_bytes, uint32_t seed)
{
    uint64_t at = 64 + offset % 7;
    uint8_t *seen = b->data + at;
    memset(seen - 16, 0xee, 16);
    memset(seen, 0xdd, n_bytes);
    memset(seen + n_bytes, 0xee, 16);
    lay(b, at - 16, n_bytes + 32);
    weir_copy copy = { b->remote, offset, b->local + at, n_bytes };
    assert_ok(read_copies(b, &copy, 1, WAIT_MS));
    look(b, at - 16, n_bytes + 32);
    assert_int_equal(owner_compare(seen, offset, n_bytes, seed), n_bytes);
    for (int i = 1; i <= 16; i++) {
        assert_int_equal(seen[-i], 0xee);
        assert_int_equal(seen[n_bytes + (uint64_t)i - 1], 0xee);
    }
}

#endif
