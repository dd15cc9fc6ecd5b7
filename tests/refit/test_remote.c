/* SPDX-License-Identifier: Apache-2.0 */
/* test_remote.c - a source whose groups are broadcast, as its manifest says: what makes no sense is
 * refused before anything is joined, and what is known is kept. Sources that are read are in
 * test_refit.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/service.h"
#include "directory/sha256.h"
#include "refit/remote.h"

#define N_GROUPS 2u

/* A rank that hands out one manifest, and a worker that fetches it. */
typedef struct fixture {
    weir_arena arena;
    weir_buffer layout, bytes;
    char digest[WEIR_SHA256_HEX];
    weir_shard shards[2];
    weir_digest digests[2];
    weir_manifest_region regions[2];
    uint32_t ends[N_GROUPS], keys[N_GROUPS], audiences[N_GROUPS];
    uint64_t n_bytes[N_GROUPS];
    weir_manifest manifest;
    weir_manifest_service *service;
    weir_worker worker;
    weir_remote *remote;
} fixture;

static bool find(void *context, const weir_manifest_request *request, weir_manifest_found *out)
{
    const fixture *f = context;
    *out = (weir_manifest_found){ f->bytes.data, f->bytes.n_bytes, f->digest };
    return strcmp(request->version_uid, "uid") == 0;
}

static void done(void *context)
{
    (void)context;
}

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

static weir_shard shard_of(const char *name, uint64_t rows, uint32_t region)
{
    return (weir_shard){ .name = name,
                         .dtype = WEIR_U8,
                         .global_shape = { 2, { 8, 16 } },
                         .box = { 2, { 0, 0 }, { rows, 16 } },
                         .compile_target = WEIR_TARGET_DEEP_GEMM_FP8,
                         .compile_metadata = "{}",
                         .region = region,
                         .n_bytes = rows * 16 };
}

static int set_up(void **state)
{
    fixture *f = weir_alloc_zeroed(1, sizeof(*f));
    const weir_manifest_source source = { find, done, f };
    weir_arena_init(&f->arena, 0);
    f->shards[0] = shard_of("a.weight", 8, 0);
    f->shards[1] = shard_of("b.weight", 4, 1);
    f->regions[0].n_bytes = f->regions[1].n_bytes = 512;
    for (uint32_t g = 0; g < N_GROUPS; g++) {
        f->ends[g] = g + 1;
        f->keys[g] = g;
        f->n_bytes[g] = f->shards[g].n_bytes;
    }
    f->manifest = (weir_manifest){ .model = "m",
                                   .run = "r",
                                   .worker_id = "w",
                                   .transport = "file",
                                   .layout_signature = "s",
                                   .version = 7,
                                   .n_ranks = 1,
                                   .regions = f->regions,
                                   .n_regions = 2,
                                   .digests = f->digests,
                                   .n_digests = 2,
                                   .group_ends = f->ends,
                                   .n_groups = N_GROUPS,
                                   .group_bytes = f->n_bytes,
                                   .group_keys = f->keys,
                                   .group_audiences = f->audiences };
    must(weir_manifest_service_open("127.0.0.1", &source, NULL, &f->service));
    snprintf(f->worker.model, sizeof(f->worker.model), "m");
    snprintf(f->worker.run, sizeof(f->worker.run), "r");
    snprintf(f->worker.id, sizeof(f->worker.id), "replica-0");
    f->worker.timeout_ms = 5000;
    f->worker.transport_directory = weir_strdup("/tmp");
    must(weir_directory_client_open("127.0.0.1:1", 5000, &f->worker.client));
    must(weir_remote_open(&f->worker, "w", "rank-0", "trainer rank 0", &f->remote));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_remote_close(f->remote);
    weir_worker_close(&f->worker);
    weir_manifest_service_close(f->service);
    weir_arena_close(&f->arena);
    weir_buffer_free(&f->layout);
    weir_buffer_free(&f->bytes);
    weir_free(f);
    return 0;
}

static weir_status fetch(fixture *f)
{
    const weir_manifest_wish wish = { .endpoint = weir_manifest_service_address(f->service),
                                      .uid = "uid",
                                      .version = 7 };
    weir_arena_reset(&f->arena);
    must(weir_layout_encode(f->shards, 2, &f->arena, &f->layout));
    f->manifest.layout = f->layout.data;
    f->manifest.layout_bytes = f->layout.n_bytes;
    must(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes));
    must(weir_sha256_hex(f->bytes.data, f->bytes.n_bytes, f->digest));
    return weir_remote_fetch(f->remote, &wish);
}

static void expect(fixture *f, weir_status status, const char *line)
{
    weir_status found = fetch(f);
    if (found != status || strcmp(weir_last_error(), line) != 0)
        fail_msg("got %s: '%s', wanted %s: '%s'", weir_status_name(found), weir_last_error(),
                 weir_status_name(status), line);
}

/* All that is left to refuse is the transport. */
static void expect_understood(fixture *f)
{
    expect(f, WEIR_ERR_UNSUPPORTED,
           "trainer rank 0: version 7 is broadcast over transport file, which cannot here");
}

static void a_transport_that_cannot_broadcast_is_named(void **state)
{
    fixture *f = *state;
    expect_understood(f);
    assert_null(f->remote->peer);
    f->manifest.transport = "pigeon";
    assert_int_equal(fetch(f), WEIR_ERR_NOT_FOUND);
    assert_non_null(strstr(weir_last_error(), "trainer rank 0: unknown transport 'pigeon'"));
}

static void a_group_larger_than_its_buffer_is_refused(void **state)
{
    fixture *f = *state;
    f->n_bytes[1] = 513;
    expect(f, WEIR_ERR_CORRUPT,
           "trainer rank 0: group 1 has 513 bytes, the largest of its buffers 512");
    f->regions[0].n_bytes = 1024;
    expect(f, WEIR_ERR_CORRUPT,
           "trainer rank 0: group 1 of b.weight has 513 bytes, its buffer 512");
    f->regions[1].n_bytes = 513;
    expect_understood(f);
}

static void a_shard_that_ends_behind_its_group_is_refused(void **state)
{
    fixture *f = *state;
    f->n_bytes[1] = 63;
    expect(f, WEIR_ERR_CORRUPT,
           "trainer rank 0: b.weight ends with byte 64 of group 1, which has 63");
    f->n_bytes[1] = 64;
    f->shards[1].offset = 1;
    expect(f, WEIR_ERR_CORRUPT,
           "trainer rank 0: b.weight ends with byte 65 of group 1, which has 64");
    f->n_bytes[1] = 65;
    expect_understood(f);
}

static void a_layout_that_is_known_is_looked_at_again_all_the_same(void **state)
{
    fixture *f = *state;
    expect_understood(f);
    uint64_t generation = f->remote->layout_generation;
    f->regions[0].n_bytes = f->regions[1].n_bytes = 127;
    f->shards[0].n_bytes = 128; /* as before: only the buffers are others */
    assert_int_equal(fetch(f), WEIR_ERR_CORRUPT);
    assert_int_equal(f->remote->layout_generation, generation);
}

static void every_number_of_a_group_is_part_of_the_layout(void **state)
{
    fixture *f = *state;
    weir_remote before;
    expect_understood(f);
    uint64_t generation = f->remote->layout_generation;
    expect_understood(f);
    assert_int_equal(f->remote->layout_generation, generation);
    for (int number = 0; number < 5; number++) {
        before = *f->remote;
        uint64_t bytes[N_GROUPS];
        uint32_t keys[N_GROUPS], audiences[N_GROUPS];
        memcpy(bytes, f->remote->group_bytes, sizeof(bytes));
        memcpy(keys, f->remote->group_keys, sizeof(keys));
        memcpy(audiences, f->remote->group_audiences, sizeof(audiences));
        weir_buffer layout = { 0 };
        must(weir_buffer_reserve(&layout, before.layout.n_bytes));
        memcpy(layout.data, before.layout.data, before.layout.n_bytes);
        layout.n_bytes = before.layout.n_bytes;
        before.layout = layout;
        before.group_ends = f->ends;
        before.group_bytes = before.group_bytes != NULL ? bytes : NULL;
        before.group_keys = before.group_keys != NULL ? keys : NULL;
        before.group_audiences = before.group_audiences != NULL ? audiences : NULL;
        f->n_bytes[1] += number == 0;
        f->keys[1] += number == 1;
        f->audiences[1] += number == 2;
        if (number >= 3) /* nothing has changed; groups are read */
            f->manifest.group_bytes = number == 4 ? NULL : f->n_bytes;
        weir_status status = fetch(f);
        assert_true(status != WEIR_OK); /* no such transport, or peer */
        generation += number != 3;
        assert_int_equal(f->remote->layout_generation, generation);
        assert_int_equal(weir_remote_layouts_equal(&before, f->remote), number == 3);
        assert_int_equal(weir_remote_layouts_equal(f->remote, &before), number == 3);
        weir_buffer_free(&layout);
    }
    assert_null(f->remote->group_bytes);
}

static void what_is_broadcast_needs_no_connection(void **state)
{
    fixture *f = *state;
    const weir_manifest_wish wish = { .endpoint = weir_manifest_service_address(f->service),
                                      .uid = "uid",
                                      .version = 7 };
    f->manifest.transport = "ucx";
    must(fetch(f));
    assert_null(f->remote->peer);
    assert_int_equal(f->remote->n_imported, 0);
    assert_int_equal(f->remote->n_groups, N_GROUPS);
    assert_string_equal(f->remote->link.ops->name, "ucx");
    f->manifest.n_groups = f->manifest.n_digests = f->manifest.n_regions = 0; /* none of it */
    f->manifest.group_bytes = NULL;
    f->manifest.layout_bytes = 0;
    must(weir_manifest_encode(&f->manifest, &f->arena, &f->bytes));
    must(weir_sha256_hex(f->bytes.data, f->bytes.n_bytes, f->digest));
    must(weir_remote_fetch(f->remote, &wish));
    assert_null(f->remote->peer);
    assert_int_equal(f->remote->n_shards, 0);
    assert_int_equal(f->worker.counters.connections, 0);
}

static void what_is_broadcast_does_not_lie_there_whole(void **state)
{
    fixture *f = *state;
    weir_manifest_wish wish = { .endpoint = weir_manifest_service_address(f->service),
                                .uid = "uid",
                                .version = 7,
                                .is_whole = true };
    expect_understood(f);
    assert_int_equal(weir_remote_fetch(f->remote, &wish), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "trainer rank 0: its manifest is of no version that "
                                           "lies there whole");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_transport_that_cannot_broadcast_is_named, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_group_larger_than_its_buffer_is_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_shard_that_ends_behind_its_group_is_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_layout_that_is_known_is_looked_at_again_all_the_same,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_number_of_a_group_is_part_of_the_layout, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_is_broadcast_needs_no_connection, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_broadcast_does_not_lie_there_whole, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
