/* SPDX-License-Identifier: Apache-2.0 */
/* test_conformance.c - what every transport must do, over every transport of this build.
 *
 * The owner of the bytes is always another process. A case that needs a capability which a
 * transport lacks is skipped, and says so.
 */
#include "transport/conformance_bench.h"

/* ---- reading ---------------------------------------------------------------------------------*/

static void reads_whole_regions_and_any_piece(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, LARGE + 13, 1);
    const uint64_t ranges[][2] = { { 0, 0 },           { 0, 1 },           { LARGE + 12, 1 },
                                   { LARGE + 13, 0 },  { 1, 4095 },        { 12345, 7654321 },
                                   { LARGE / 2, 100 }, { 8 * MIB - 1, 2 }, { 3, 8 * MIB },
                                   { 0, LARGE + 13 } };
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
        assert_reads(b, ranges[i][0], ranges[i][1], 1);
}

static void reads_memory_that_was_exposed(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_EXPOSE, 20 * MIB + 5, 2);
    assert_reads(b, 0, 20 * MIB + 5, 2);
    assert_reads(b, 77, 1, 2);
}

static void reads_many_copies_in_one_post(void **state)
{
    enum { n_copies = 3000 };
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 8 * MIB, 3);
    weir_copy *copies = calloc(n_copies, sizeof(*copies));
    uint64_t at = 0;
    for (size_t i = 0; i < n_copies; i++) {
        uint64_t n_bytes = (i * 977) % 5000;
        copies[i] = (weir_copy){ b->remote, (i * 2741) % (8 * MIB - 5000), b->local + at, n_bytes };
        at += n_bytes;
    }
    assert_ok(read_copies(b, copies, n_copies, WAIT_MS));
    look(b, 0, at);
    for (size_t i = 0; i < n_copies; i++) {
        const uint8_t *seen = b->data + ((uint8_t *)copies[i].local - b->local);
        assert_int_equal(owner_compare(seen, copies[i].offset, copies[i].n_bytes, 3),
                         copies[i].n_bytes);
    }
    free(copies);
}

static void no_copies_and_an_empty_region_are_fine(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 0, 3);
    assert_ok(read_copies(b, NULL, 0, WAIT_MS));
    weir_copy nothing = { b->remote, 0, NULL, 0 };
    assert_ok(read_copies(b, &nothing, 1, WAIT_MS));
    weir_copy byte = { b->remote, 0, b->local, 1 };
    assert_int_equal(read_copies(b, &byte, 1, WAIT_MS), WEIR_ERR_INVALID);
}

static void progress_is_reported_and_reaches_the_whole(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, LARGE, 4);
    weir_copy copy = { b->remote, 0, b->local, LARGE };
    weir_transfer *transfer;
    assert_ok(b->ops->post(b->peer, &copy, 1, &transfer));
    assert_int_equal(transfer->n_bytes, LARGE);
    uint64_t done = 0, last = 0;
    unsigned n_steps = 0;
    weir_status status;
    while ((status = b->ops->test(transfer, &done)) == WEIR_IN_PROGRESS) {
        assert_true(done >= last && done < LARGE + 1);
        n_steps += done > last;
        last = done;
    }
    assert_ok(status);
    assert_int_equal(done, LARGE);
    assert_true(n_steps >= 2);
    assert_ok(b->ops->test(transfer, NULL)); /* and stays so */
    b->ops->finish(transfer);
}

static void two_processes_read_at_once(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, LARGE, 5);
    owner *other = owner_open(b->setting->transport, b->setting->tls, b->directory);
    owner_request *request = calloc(1, sizeof(*request));
    request->op = OWNER_READ;
    request->seed = 5;
    request->n_bytes = LARGE;
    request->address_bytes = (uint32_t)b->address_bytes;
    request->blob_bytes = (uint32_t)(b->address_bytes + b->key_bytes);
    memcpy(request->blob, b->address, b->address_bytes);
    memcpy(request->blob + b->address_bytes, b->key, b->key_bytes);
    for (int round = 0; round < 3; round++) {
        owner_send(other, request);
        assert_reads(b, 0, LARGE, 5);
        weir_status status = owner_receive(other);
        if (status != WEIR_OK)
            fail_msg("%s: %s", weir_status_name(status), (char *)other->reply.blob);
    }
    free(request);
    assert_int_equal(owner_close(other), 0);
}

static void two_peers_of_one_process_are_independent(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 16 * MIB, 6);
    weir_peer *second = NULL;
    weir_remote_region *remote = NULL;
    assert_ok(
        b->ops->connect(b->transport, b->address, b->address_bytes, "second", WAIT_MS, &second));
    assert_ok(b->ops->import(second, b->key, b->key_bytes, &remote));
    weir_copy a = { b->remote, 0, b->local, 16 * MIB };
    weir_copy c = { remote, 0, b->local + 16 * MIB, 16 * MIB };
    weir_transfer *first_transfer, *second_transfer, *third;
    assert_int_equal(b->ops->post(second, &a, 1, &third), WEIR_ERR_INVALID);
    assert_ok(b->ops->post(b->peer, &a, 1, &first_transfer));
    assert_int_equal(b->ops->post(b->peer, &a, 1, &third), WEIR_ERR_BUSY);
    assert_ok(b->ops->post(second, &c, 1, &second_transfer));
    assert_ok(weir_transfer_wait(second_transfer, WAIT_MS));
    assert_ok(weir_transfer_wait(first_transfer, WAIT_MS));
    b->ops->finish(first_transfer);
    b->ops->finish(second_transfer);
    look(b, 0, 32 * MIB);
    assert_int_equal(owner_compare(b->data, 0, 16 * MIB, 6), 16 * MIB);
    assert_int_equal(owner_compare(b->data + 16 * MIB, 0, 16 * MIB, 6), 16 * MIB);
    b->ops->forget(remote);
    b->ops->disconnect(second);
    assert_reads(b, 5, 1000, 6);
}

static void a_second_transfer_allocates_nothing(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, LARGE, 7);
    assert_reads(b, 0, LARGE, 7);
    uint64_t before = weir_alloc_count();
    assert_reads(b, 0, LARGE, 7);
    assert_int_equal(weir_alloc_count(), before);
}

/* ---- mapping ---------------------------------------------------------------------------------*/

static void write_through_a_map(bench *b, uint64_t n_bytes, uint32_t seed)
{
    memory_place here = place_of((b->ops->memory & WEIR_MEMORY_CUDA) != 0 ? "malloc 0" : "host");
    void *mapped = NULL;
    uint64_t mapped_bytes = 0;
    assert_ok(b->ops->map(b->remote, &mapped, &mapped_bytes));
    assert_true(mapped_bytes >= n_bytes);
    assert_ok(place_copy(&here, b->data, mapped, n_bytes));
    assert_int_equal(owner_compare(b->data, 0, n_bytes, seed), n_bytes);
    owner_fill(b->data, n_bytes, seed + 1);
    assert_ok(place_copy(&here, mapped, b->data, n_bytes));
    owner_must(b, OWNER_COMPARE, 0, 0, seed + 1, "");
}

static void what_is_written_through_a_map_is_the_owners(void **state)
{
    bench *b = bench_of(state);
    need(b, WEIR_CAP_MAP, "WEIR_CAP_MAP");
    share(b, OWNER_ALLOCATE, 20 * MIB + 5, 21);
    if (b->setting->owner_answers) {
        void *mapped = NULL;
        uint64_t mapped_bytes = 0;
        assert_int_equal(b->ops->map(b->remote, &mapped, &mapped_bytes), WEIR_ERR_UNSUPPORTED);
        assert_non_null(strstr(weir_last_error(), "owner 0"));
        return;
    }
    write_through_a_map(b, 20 * MIB + 5, 21);
    assert_reads(b, 0, 20 * MIB + 5, 22);
}

static void exposed_gpu_memory_is_mapped_too(void **state)
{
    bench *b = bench_of(state);
    need(b, WEIR_CAP_MAP, "WEIR_CAP_MAP");
    if ((b->ops->memory & WEIR_MEMORY_CUDA) == 0) {
        print_message("skipped: %s moves no GPU memory\n", b->ops->name);
        skip();
    }
    share(b, OWNER_EXPOSE, 20 * MIB + 5, 23);
    write_through_a_map(b, 20 * MIB + 5, 23);
}

/* ---- sealing and releasing -------------------------------------------------------------------*/

static bool file_exists(const bench *b, const char *name)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/conformance%%2Fmodel/%s", b->directory, name);
    return access(path, F_OK) == 0;
}

static void a_second_seal_replaces_the_first(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 3 * MIB, 8);
    assert_reads(b, 0, 3 * MIB, 8);
    size_t old_bytes = b->key_bytes;
    uint8_t *old = malloc(old_bytes);
    memcpy(old, b->key, old_bytes);
    seal(b, 9, "v2");
    weir_remote_region *again = NULL;
    if ((b->ops->caps & WEIR_CAP_DURABLE) != 0) {
        assert_false(file_exists(b, "v1.ready") || file_exists(b, "v1.safetensors") ||
                     file_exists(b, "v1.manifest.json"));
        assert_true(file_exists(b, "v2.ready") && file_exists(b, "v2.safetensors") &&
                    file_exists(b, "v2.manifest.json"));
        assert_int_equal(b->ops->import(b->peer, old, old_bytes, &again), WEIR_ERR_NOT_FOUND);
        assert_reads(b, 0, 3 * MIB, 8); /* who has opened the old one still has it */
    }
    free(old);
    b->ops->forget(b->remote);
    b->remote = NULL;
    assert_ok(b->ops->import(b->peer, b->key, b->key_bytes, &b->remote));
    assert_reads(b, 0, 3 * MIB, 9);
    seal(b, 10, "v2"); /* under the same label */
    b->ops->forget(b->remote);
    b->remote = NULL;
    assert_ok(b->ops->import(b->peer, b->key, b->key_bytes, &b->remote));
    assert_reads(b, 0, 3 * MIB, 10);
}

static void a_reader_of_a_released_region_harms_nobody(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 4 * MIB, 11);
    assert_reads(b, 0, 4 * MIB, 11);
    owner_must(b, OWNER_RELEASE, 0, 0, 0, "");
    weir_copy copy = { b->remote, 0, b->local, 4 * MIB };
    weir_status status = read_copies(b, &copy, 1, WAIT_MS);
    assert_true(status == WEIR_OK || status <= WEIR_ERR_PEER_LOST);
    if ((b->ops->caps & WEIR_CAP_DURABLE) != 0)
        assert_int_equal(owner_compare(b->data, 0, 4 * MIB, 11), 4 * MIB);
    b->ops->forget(b->remote);
    b->remote = NULL;
    (void)b->ops->import(b->peer, b->key, b->key_bytes, &b->remote);
    b->ops->forget(b->remote);
    b->remote = NULL;
    b->ops->disconnect(b->peer);
    b->peer = NULL;
    share(b, OWNER_ALLOCATE, 4 * MIB, 12);
    assert_reads(b, 0, 4 * MIB, 12);
}

static void an_unsealed_region_has_no_key(void **state)
{
    bench *b = bench_of(state);
    weir_region *region;
    const void *key;
    size_t key_bytes;
    assert_ok(b->ops->allocate(b->transport, 5000, &region));
    assert_int_equal((uintptr_t)b->ops->region_data(region) % 4096, 0);
    memory_place place = place_of((b->ops->memory & WEIR_MEMORY_CUDA) != 0 ? "malloc 0" : "host");
    memset(b->data, 1, 5000);
    assert_ok(place_copy(&place, b->data, b->ops->region_data(region), 5000));
    for (size_t i = 0; i < 5000; i++)
        assert_int_equal(b->data[i], 0);
    assert_int_equal(b->ops->region_key(region, &key, &key_bytes), WEIR_ERR_INVALID);
    b->ops->release(region);
    assert_int_equal(b->ops->expose(b->transport, NULL, 5000, &region), WEIR_ERR_INVALID);
}

/* ---- hostile input ---------------------------------------------------------------------------*/

static void copies_out_of_bounds_are_refused(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 1000, 13);
    const uint64_t ranges[][2] = {
        { 0, 1001 },       { 1000, 1 },       { 1001, 0 },
        { UINT64_MAX, 2 }, { 2, UINT64_MAX }, { UINT64_MAX, UINT64_MAX }
    };
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        weir_copy copies[2] = { { b->remote, 0, b->local, 1000 },
                                { b->remote, ranges[i][0], b->local, ranges[i][1] } };
        assert_int_equal(read_copies(b, copies, 2, WAIT_MS), WEIR_ERR_INVALID);
        assert_non_null(strstr(weir_last_error(), "owner 0"));
    }
    weir_copy lost = { NULL, 0, b->local, 1 };
    assert_int_equal(read_copies(b, &lost, 1, WAIT_MS), WEIR_ERR_INVALID);
    weir_copy nowhere = { b->remote, 0, NULL, 1 };
    assert_int_equal(read_copies(b, &nowhere, 1, WAIT_MS), WEIR_ERR_INVALID);
    assert_reads(b, 0, 1000, 13);
}

static bool refused(weir_status status)
{
    return status == WEIR_ERR_CORRUPT || status == WEIR_ERR_UNSUPPORTED;
}

static void damaged_keys_are_refused(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 5000, 14);
    weir_remote_region *remote = NULL;
    uint8_t *damaged = malloc(b->key_bytes + 1);
    for (size_t n = 0; n < b->key_bytes; n++)
        assert_true(refused(b->ops->import(b->peer, b->key, n, &remote)));
    for (size_t i = 0; i < b->key_bytes; i++) {
        memcpy(damaged, b->key, b->key_bytes);
        damaged[i] ^= (uint8_t)(1u << (i % 8));
        assert_true(refused(b->ops->import(b->peer, damaged, b->key_bytes, &remote)));
        assert_memory_equal(weir_last_error(), "owner 0", 7);
    }
    memcpy(damaged, b->key, b->key_bytes);
    damaged[b->key_bytes] = 0;
    assert_true(refused(b->ops->import(b->peer, damaged, b->key_bytes + 1, &remote)));
    assert_true(refused(b->ops->import(b->peer, b->address, b->address_bytes, &remote)));
    assert_true(refused(b->ops->import(b->peer, NULL, 0, &remote)));
    assert_null(remote);
    free(damaged);
    assert_reads(b, 0, 5000, 14);
}

static void damaged_addresses_are_refused(void **state)
{
    bench *b = bench_of(state);
    ask_address(b);
    weir_peer *peer = NULL;
    uint8_t *damaged = malloc(b->address_bytes);
    for (size_t n = 0; n < b->address_bytes; n++)
        assert_true(refused(b->ops->connect(b->transport, b->address, n, "x", 100, &peer)));
    for (size_t i = 0; i < b->address_bytes; i++) {
        memcpy(damaged, b->address, b->address_bytes);
        damaged[i] ^= 0x10;
        assert_true(
            refused(b->ops->connect(b->transport, damaged, b->address_bytes, "x", 100, &peer)));
    }
    assert_null(peer);
    free(damaged);
}

static void keys_of_another_transport_are_refused(void **state)
{
    bench *b = bench_of(state);
    connect_owner(b);
    weir_key_buffer foreign = { 0 };
    weir_remote_region *remote;
    if (strcmp(b->ops->name, "file") == 0) {
        weir_ucx_key key = {
            .ucx_version = "1.13.1", .n_bytes = 1, .rkey = (const uint8_t *)"x", .rkey_bytes = 1
        };
        assert_ok(weir_ucx_key_encode(&key, &foreign));
    } else {
        weir_file_key key = { .path = "model/label" };
        assert_ok(weir_file_key_encode(&key, &foreign));
    }
    assert_int_equal(b->ops->import(b->peer, foreign.data, foreign.n_bytes, &remote),
                     WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "is of transport"));
    weir_key_buffer_close(&foreign);
}

/* ---- peers that go away ----------------------------------------------------------------------*/

/* Stops the owner, begins a transfer that cannot end, and lets it run into the standstill. */
static weir_transfer *stand_still(bench *b, const weir_copy *copy)
{
    weir_transfer *transfer;
    kill(b->owner->pid, SIGSTOP);
    assert_ok(b->ops->post(b->peer, copy, 1, &transfer));
    for (int i = 0; i < 50 && b->ops->test(transfer, NULL) == WEIR_IN_PROGRESS; i++) {
    }
    return transfer;
}

static void a_killed_owner_is_noticed_within_two_seconds(void **state)
{
    bench *b = bench_of(state);
    need(b, WEIR_CAP_LIVENESS, "WEIR_CAP_LIVENESS");
    share(b, OWNER_EXPOSE, LARGE, 15);
    weir_copy copy = { b->remote, 0, b->local, LARGE };
    weir_transfer *transfer = stand_still(b, &copy);
    owner_kill(b->owner);
    double start = weir_now_s();
    weir_status status = weir_transfer_wait(transfer, WAIT_MS);
    double seconds = weir_now_s() - start;
    if (status == WEIR_OK && !b->setting->owner_answers) {
        look(b, 0, LARGE);
        assert_int_equal(owner_compare(b->data, 0, LARGE, 15), LARGE); /* had all it needed */
    } else {
        assert_int_equal(status, WEIR_ERR_PEER_LOST);
        assert_non_null(strstr(weir_last_error(), "owner 0: peer went away"));
    }
    assert_true(seconds < 2.0);
    print_message("%s: %s after %.3f s\n", b->setting->name, weir_status_name(status), seconds);
    b->ops->finish(transfer);
    owner_reap(b->owner);
    weir_transfer *next;
    start = weir_now_s();
    do {
        status = b->ops->post(b->peer, &copy, 1, &next);
        if (status == WEIR_OK) {
            status = weir_transfer_wait(next, 2000);
            b->ops->finish(next);
        }
    } while (status == WEIR_OK && weir_now_s() < start + 2.0);
    assert_int_equal(status, WEIR_ERR_PEER_LOST);
}

static void what_is_sealed_outlives_its_owner(void **state)
{
    bench *b = bench_of(state);
    need(b, WEIR_CAP_DURABLE, "WEIR_CAP_DURABLE");
    owner_must(b, OWNER_ALLOCATE, 0, 5 * MIB, 0, "");
    seal(b, 16, "v1");
    ask_address(b);
    owner_kill(b->owner);
    owner_reap(b->owner);
    assert_ok(b->ops->connect(b->transport, b->address, b->address_bytes, "late", 100, &b->peer));
    assert_ok(b->ops->import(b->peer, b->key, b->key_bytes, &b->remote));
    assert_reads(b, 0, 5 * MIB, 16);
}

/* The owner's address as it looks from another host: no process to watch, none to map from. */
static weir_key_buffer address_from_elsewhere(const bench *b)
{
    weir_key_buffer elsewhere = { 0 };
    if (strcmp(b->ops->name, "ucx") == 0) {
        weir_ucx_address address;
        assert_ok(weir_ucx_address_decode(b->address, b->address_bytes, "x", &address));
        snprintf(address.host, sizeof(address.host), "another host");
        assert_ok(weir_ucx_address_encode(&address, &elsewhere));
    } else {
        weir_cuda_ipc_address address;
        assert_ok(weir_cuda_ipc_address_decode(b->address, b->address_bytes, "x", &address));
        snprintf(address.place, sizeof(address.place), "another host");
        assert_ok(weir_cuda_ipc_address_encode(&address, &elsewhere));
    }
    return elsewhere;
}

static void connecting_to_a_dead_owner_fails_in_time(void **state)
{
    bench *b = bench_of(state);
    need(b, WEIR_CAP_LIVENESS, "WEIR_CAP_LIVENESS");
    ask_address(b);
    owner_kill(b->owner);
    double start = weir_now_s();
    weir_status status =
        b->ops->connect(b->transport, b->address, b->address_bytes, "zombie", 1000, &b->peer);
    assert_int_equal(status, WEIR_ERR_PEER_LOST);
    owner_reap(b->owner);
    status = b->ops->connect(b->transport, b->address, b->address_bytes, "dead", 1000, &b->peer);
    assert_int_equal(status, WEIR_ERR_PEER_LOST);
    weir_key_buffer elsewhere = address_from_elsewhere(b);
    status =
        b->ops->connect(b->transport, elsewhere.data, elsewhere.n_bytes, "far", 1000, &b->peer);
    assert_true(status == WEIR_ERR_PEER_LOST || status == WEIR_ERR_TIMED_OUT ||
                status == WEIR_ERR_UNSUPPORTED);
    assert_null(b->peer);
    assert_true(weir_now_s() - start < 2.5);
    weir_key_buffer_close(&elsewhere);
}

static void an_unseen_process_that_dies_is_noticed_too(void **state)
{
    bench *b = bench_of(state);
    need(b, WEIR_CAP_LIVENESS, "WEIR_CAP_LIVENESS");
    if ((b->ops->memory & WEIR_MEMORY_CUDA) != 0) {
        print_message("skipped: %s reaches processes of its own host alone\n", b->ops->name);
        skip();
    }
    owner_must(b, OWNER_EXPOSE, 0, LARGE, 0, "");
    seal(b, 17, "v1");
    ask_address(b);
    weir_key_buffer elsewhere = address_from_elsewhere(b);
    assert_ok(b->ops->connect(b->transport, elsewhere.data, elsewhere.n_bytes, "owner 0", 1000,
                              &b->peer));
    assert_ok(b->ops->import(b->peer, b->key, b->key_bytes, &b->remote));
    weir_copy copy = { b->remote, 0, b->local, LARGE };
    weir_transfer *transfer = stand_still(b, &copy);
    owner_kill(b->owner);
    owner_reap(b->owner);
    double start = weir_now_s();
    weir_status status = weir_transfer_wait(transfer, WAIT_MS);
    double seconds = weir_now_s() - start;
    print_message("%s: %s after %.3f s by UCX alone\n", b->setting->name, weir_status_name(status),
                  seconds);
    assert_true(status == WEIR_ERR_PEER_LOST || (status == WEIR_OK && !b->setting->owner_answers));
    assert_true(seconds < 2.5);
    b->ops->finish(transfer);
    weir_key_buffer_close(&elsewhere);
}

static void a_stopped_owner_times_out_and_may_come_back(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, LARGE, 18);
    weir_copy copy = { b->remote, 0, b->local, LARGE };
    weir_transfer *transfer = stand_still(b, &copy);
    weir_status status = weir_transfer_wait(transfer, 300);
    if (b->setting->owner_answers) {
        assert_int_equal(status, WEIR_ERR_TIMED_OUT);
        assert_non_null(strstr(weir_last_error(), "owner 0: nothing arrived for 0.3 s"));
        kill(b->owner->pid, SIGCONT);
        status = weir_transfer_wait(transfer, WAIT_MS);
    }
    assert_ok(status);
    b->ops->finish(transfer);
    look(b, 0, LARGE);
    assert_int_equal(owner_compare(b->data, 0, LARGE, 18), LARGE);
    kill(b->owner->pid, SIGCONT);
}

static void after_finish_nothing_is_written(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, LARGE, 19);
    for (int stopped = 0; stopped < 2; stopped++) {
        memset(b->data, 0, LARGE);
        lay(b, 0, LARGE);
        weir_copy copy = { b->remote, 0, b->local, LARGE };
        weir_transfer *transfer;
        if (stopped)
            kill(b->owner->pid, SIGSTOP);
        assert_ok(b->ops->post(b->peer, &copy, 1, &transfer));
        b->ops->test(transfer, NULL);
        double start = weir_now_s();
        b->ops->finish(transfer);
        assert_true(weir_now_s() - start < 2.5);
        uint8_t *landed = malloc(LARGE);
        look(b, 0, LARGE);
        memcpy(landed, b->data, LARGE);
        kill(b->owner->pid, SIGCONT);
        weir_peer *second = NULL; /* whose progress would let late answers in */
        assert_ok(b->ops->connect(b->transport, b->address, b->address_bytes, "second", WAIT_MS,
                                  &second));
        weir_sleep_ms(200);
        weir_remote_region *remote = NULL;
        weir_transfer *small;
        uint8_t byte[16];
        assert_ok(b->ops->import(second, b->key, b->key_bytes, &remote));
        weir_copy little = { remote, 1, byte, sizeof(byte) };
        assert_ok(b->ops->post(second, &little, 1, &small));
        assert_ok(weir_transfer_wait(small, WAIT_MS));
        b->ops->finish(small);
        assert_int_equal(owner_compare(byte, 1, sizeof(byte), 19), sizeof(byte));
        b->ops->forget(remote);
        b->ops->disconnect(second);
        look(b, 0, LARGE);
        assert_memory_equal(landed, b->data, LARGE);
        free(landed);
    }
}

/* ---- options and memory ----------------------------------------------------------------------*/

static void options_of_another_size_are_understood(void **state)
{
    bench *b = bench_of(state);
    struct {
        weir_transport_options options;
        uint64_t tail;
    } longer = { .options = { .size = sizeof(longer), .directory = b->directory } };
    weir_transport *transport = NULL;
    assert_ok(b->ops->open(&longer.options, &transport));
    b->ops->close(transport);
    longer.tail = 1;
    assert_int_equal(b->ops->open(&longer.options, &transport), WEIR_ERR_INVALID);
    longer.options.size = 0;
    assert_int_equal(b->ops->open(&longer.options, &transport), WEIR_ERR_INVALID);
    b->ops->close(NULL);
    b->ops->release(NULL);
    b->ops->disconnect(NULL);
    b->ops->forget(NULL);
    b->ops->finish(NULL);
}

static weir_status owner_side(bench *b)
{
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.directory = b->directory;
    weir_transport *transport = NULL;
    weir_region *region = NULL;
    const void *bytes;
    size_t n_bytes;
    weir_status status = b->ops->open(&options, &transport);
    if (status != WEIR_OK)
        return status;
    status = b->ops->address(transport, &bytes, &n_bytes);
    if (status == WEIR_OK)
        status = b->ops->allocate(transport, 100, &region);
    weir_shard shard = { .name = "t",
                         .dtype = WEIR_U8,
                         .global_shape = { 1, { 100 } },
                         .box = { 1, { 0 }, { 100 } },
                         .n_bytes = 100 };
    weir_seal seal_of = WEIR_SEAL_INIT;
    seal_of.model = "m";
    seal_of.label = "l";
    seal_of.shards = &shard;
    seal_of.n_shards = 1;
    if (status == WEIR_OK)
        status = b->ops->seal(region, &seal_of);
    if (status == WEIR_OK)
        status = b->ops->region_key(region, &bytes, &n_bytes);
    b->ops->release(region);
    b->ops->close(transport);
    return status;
}

static weir_status reader_side(bench *b)
{
    weir_peer *peer = NULL;
    weir_remote_region *remote = NULL;
    weir_status status =
        b->ops->connect(b->transport, b->address, b->address_bytes, "x", WAIT_MS, &peer);
    if (status == WEIR_OK)
        status = b->ops->import(peer, b->key, b->key_bytes, &remote);
    b->ops->forget(remote);
    b->ops->disconnect(peer);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 1000, 20);
    weir_status (*const sides[])(bench *) = { owner_side, reader_side };
    for (size_t i = 0; i < 2; i++) {
        uint64_t n = 0;
        weir_status status;
        do {
            weir_alloc_fail_at(++n);
            status = sides[i](b);
            if (status != WEIR_OK)
                assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        } while (status != WEIR_OK && n < 200);
        weir_alloc_fail_at(0);
        assert_true(n > 1 && n < 200);
    }
    assert_reads(b, 0, 1000, 20);
}

typedef struct named_case {
    const char *name;
    CMUnitTestFunction run;
} named_case;

#define CASE(function)      \
    {                       \
#function, function \
    }
static const named_case cases[] = {
    CASE(reads_whole_regions_and_any_piece),
    CASE(reads_memory_that_was_exposed),
    CASE(reads_many_copies_in_one_post),
    CASE(no_copies_and_an_empty_region_are_fine),
    CASE(progress_is_reported_and_reaches_the_whole),
    CASE(two_processes_read_at_once),
    CASE(two_peers_of_one_process_are_independent),
    CASE(a_second_transfer_allocates_nothing),
    CASE(what_is_written_through_a_map_is_the_owners),
    CASE(exposed_gpu_memory_is_mapped_too),
    CASE(a_second_seal_replaces_the_first),
    CASE(a_reader_of_a_released_region_harms_nobody),
    CASE(an_unsealed_region_has_no_key),
    CASE(copies_out_of_bounds_are_refused),
    CASE(damaged_keys_are_refused),
    CASE(damaged_addresses_are_refused),
    CASE(keys_of_another_transport_are_refused),
    CASE(a_killed_owner_is_noticed_within_two_seconds),
    CASE(what_is_sealed_outlives_its_owner),
    CASE(connecting_to_a_dead_owner_fails_in_time),
    CASE(an_unseen_process_that_dies_is_noticed_too),
    CASE(a_stopped_owner_times_out_and_may_come_back),
    CASE(after_finish_nothing_is_written),
    CASE(options_of_another_size_are_understood),
    CASE(every_allocation_may_fail),
};
#define N_CASES (sizeof(cases) / sizeof(cases[0]))

int main(int argc, char **argv)
{
    if (argc == 5)
        return owner_main(argv[1], argv[2], argv[3], atoi(argv[4]));
    if (argc == 2)
        cmocka_set_test_filter(argv[1]);
    static struct CMUnitTest tests[N_SETTINGS * N_CASES];
    static char names[N_SETTINGS * N_CASES][128];
    size_t n = 0;
    for (size_t s = 0; s < N_SETTINGS; s++) {
        for (size_t c = 0; c < N_CASES; c++, n++) {
            snprintf(names[n], sizeof(names[n]), "%s: %s", settings[s].name, cases[c].name);
            tests[n] = (struct CMUnitTest){ names[n], cases[c].run, bench_open, bench_close,
                                            (void *)(uintptr_t)&settings[s] };
        }
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
