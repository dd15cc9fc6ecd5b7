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
} setting;

static const setting settings[] = {
    { "ucx", "ucx", "", false },
    { "ucx over tcp", "ucx", "tcp", true },
    { "ucx over shared memory", "ucx", "posix,sysv,cma,self", false },
    { "ucx over shared memory without cma", "ucx", "posix,sysv,self", false },
    { "file", "file", "", false },
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
    uint8_t *data;
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

static inline int bench_open(void **state)
{
    const setting *chosen = *state;
    bench *b = calloc(1, sizeof(*b));
    *state = b;
    b->setting = chosen;
    if (weir_transport_get(chosen->transport, &b->ops) != WEIR_OK)
        return 0; /* every case skips itself */
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
    b->data = calloc(1, LARGE + 4096);
    return 0;
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
        print_message("skipped: transport %s is not in this build\n", b->setting->transport);
        skip();
    }
    return b;
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
    uint8_t *local = b->data + 64 + offset % 7;
    memset(local - 16, 0xee, 16);
    memset(local, 0xdd, n_bytes);
    memset(local + n_bytes, 0xee, 16);
    weir_copy copy = { b->remote, offset, local, n_bytes };
    assert_ok(read_copies(b, &copy, 1, WAIT_MS));
    assert_int_equal(owner_compare(local, offset, n_bytes, seed), n_bytes);
    for (int i = 1; i <= 16; i++) {
        assert_int_equal(local[-i], 0xee);
        assert_int_equal(local[n_bytes + (uint64_t)i - 1], 0xee);
    }
}

#endif
