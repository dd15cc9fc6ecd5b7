/* SPDX-License-Identifier: Apache-2.0 */
/* test_service.c - manifests from worker to worker. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "directory/client.h"
#include "directory/service.h"

#define TIMEOUT_MS 10000

typedef struct owner {
    const char *slot;
    const void *bytes;
    size_t n_bytes;
    int n_held;
} owner;

static bool find(void *context, const weir_manifest_request *request, weir_manifest_found *out)
{
    owner *o = context;
    if (strcmp(request->version_uid, "uid") != 0 || strcmp(request->slot, o->slot) != 0)
        return false;
    *out = (weir_manifest_found){ o->bytes, o->n_bytes, "sha256:abc" };
    __atomic_add_fetch(&o->n_held, 1, __ATOMIC_SEQ_CST);
    return true;
}

static void done(void *context)
{
    __atomic_sub_fetch(&((owner *)context)->n_held, 1, __ATOMIC_SEQ_CST);
}

static weir_manifest_service *open_for(owner *o)
{
    weir_manifest_source source = { find, done, o };
    weir_manifest_service *service;
    assert_int_equal(weir_manifest_service_open("127.0.0.1", &source, NULL, &service), WEIR_OK);
    return service;
}

static weir_directory_client *open_client(void)
{
    weir_directory_client *client; /* its directory is never asked */
    assert_int_equal(weir_directory_client_open("127.0.0.1:1", TIMEOUT_MS, &client), WEIR_OK);
    return client;
}

static void test_manifests_come_from_many_workers(void **state)
{
    (void)state;
    enum { N = 70 }; /* more than the client keeps connections for */
    owner owners[N];
    weir_manifest_service *services[N];
    char slots[N][32], digest[WEIR_DIGEST_TEXT];
    unsigned char *buffer = NULL;
    size_t buffer_bytes = 0, n_bytes;
    weir_directory_client *client = open_client();
    for (int i = 0; i < N; i++) {
        snprintf(slots[i], sizeof(slots[i]), "rank-%d", i);
        owners[i] = (owner){ slots[i], slots[i], strlen(slots[i]), 0 };
        services[i] = open_for(&owners[i]);
    }
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) {
            assert_int_equal(weir_directory_get_manifest(
                                 client, weir_manifest_service_address(services[i]), "rank", "uid",
                                 slots[i], &buffer, &buffer_bytes, &n_bytes, digest),
                             WEIR_OK);
            assert_int_equal(n_bytes, strlen(slots[i]));
            assert_memory_equal(buffer, slots[i], n_bytes);
            assert_string_equal(digest, "sha256:abc");
            assert_int_equal(owners[i].n_held, 0);
        }
    }
    for (int i = 0; i < N; i++)
        weir_manifest_service_close(services[i]);
    weir_directory_client_close(client);
    weir_free(buffer);
}

static void test_a_large_manifest_again_takes_nothing_from_the_heap(void **state)
{
    (void)state;
    const size_t n = (size_t)8 << 20;
    unsigned char *bytes = malloc(n), *buffer = NULL;
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)(i * 31);
    owner o = { "rank-0", bytes, n, 0 };
    weir_manifest_service *service = open_for(&o);
    weir_directory_client *client = open_client();
    char digest[WEIR_DIGEST_TEXT];
    size_t buffer_bytes = 0, n_bytes;
    uint64_t before = 0;
    for (int i = 0; i < 8; i++) {
        if (i == 2)
            before = weir_alloc_count();
        assert_int_equal(weir_directory_get_manifest(client, weir_manifest_service_address(service),
                                                     "rank 0", "uid", "rank-0", &buffer,
                                                     &buffer_bytes, &n_bytes, digest),
                         WEIR_OK);
        assert_int_equal(n_bytes, n);
        assert_memory_equal(buffer, bytes, n);
    }
    assert_int_equal(weir_alloc_count(), before);
    weir_manifest_service_close(service);
    weir_directory_client_close(client);
    weir_free(buffer);
    free(bytes);
}

static void test_refusals_name_the_worker(void **state)
{
    (void)state;
    owner o = { "rank-0", "x", 1, 0 };
    weir_manifest_service *service = open_for(&o);
    weir_directory_client *client = open_client();
    unsigned char *buffer = NULL;
    size_t buffer_bytes = 0, n_bytes;
    char digest[WEIR_DIGEST_TEXT], expected[256], address[64];
    snprintf(address, sizeof(address), "%s", weir_manifest_service_address(service));
    assert_int_equal(weir_directory_get_manifest(client, address, "trainer rank 0", "uid", "rank-9",
                                                 &buffer, &buffer_bytes, &n_bytes, digest),
                     WEIR_ERR_NOT_FOUND);
    snprintf(expected, sizeof(expected),
             "trainer rank 0 %s: RefitWorkerService.GetWeightVersionShardManifest: NOT_FOUND: no "
             "manifest of version 'uid', slot 'rank-9' here",
             address);
    assert_string_equal(weir_last_error(), expected);
    weir_manifest_service_close(service);
    assert_int_equal(weir_directory_get_manifest(client, address, "trainer rank 0", "uid", "rank-0",
                                                 &buffer, &buffer_bytes, &n_bytes, digest),
                     WEIR_ERR_PEER_LOST);
    assert_int_equal(weir_directory_get_manifest(client, "nonsense", "trainer rank 1", "uid",
                                                 "rank-0", &buffer, &buffer_bytes, &n_bytes,
                                                 digest),
                     WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "trainer rank 1: address 'nonsense' is not HOST:PORT");
    weir_directory_client_close(client);
    weir_manifest_service_close(NULL);
}

/* Repeats what it was asked for. */
static bool repeat(void *context, const weir_manifest_request *request, weir_manifest_found *out)
{
    static char said[256];
    (void)context;
    int n = snprintf(said, sizeof(said), "%s %s %s %u %u %u %s%s", request->version_uid,
                     request->slot, request->reader, request->worker, request->group,
                     request->round, request->gave_up, request->fresh ? " fresh" : "");
    *out = (weir_manifest_found){ said, (size_t)n, "" };
    return true;
}

static void repeated(void *context)
{
    (void)context;
}

static void test_what_a_reader_says_of_a_group_arrives(void **state)
{
    (void)state;
    weir_manifest_source source = { repeat, repeated, NULL };
    weir_manifest_service *service;
    assert_int_equal(weir_manifest_service_open("127.0.0.1", &source, NULL, &service), WEIR_OK);
    weir_directory_client *client = open_client();
    const char *address = weir_manifest_service_address(service);
    unsigned char *buffer = NULL;
    size_t buffer_bytes = 0, n_bytes;
    char digest[WEIR_DIGEST_TEXT];
    weir_group_ask ask = { "replica-1", 3, 17, 2, NULL, false };
    assert_int_equal(weir_directory_ask_group(client, address, "rank 0", "uid", "rank-0", &ask, 0,
                                              &buffer, &buffer_bytes, &n_bytes),
                     WEIR_OK);
    assert_int_equal(n_bytes, strlen("uid rank-0 replica-1 3 17 2 "));
    assert_memory_equal(buffer, "uid rank-0 replica-1 3 17 2 ", n_bytes);
    ask.gave_up = "it fails";
    ask.fresh = true;
    assert_int_equal(weir_directory_ask_group(client, address, "rank 0", "uid", "rank-0", &ask, 500,
                                              &buffer, &buffer_bytes, &n_bytes),
                     WEIR_OK);
    assert_memory_equal(buffer, "uid rank-0 replica-1 3 17 2 it fails fresh", n_bytes);
    assert_int_equal(weir_directory_get_manifest(client, address, "rank 0", "uid", "rank-0",
                                                 &buffer, &buffer_bytes, &n_bytes, digest),
                     WEIR_OK);
    assert_memory_equal(buffer, "uid rank-0  0 0 0 ", n_bytes); /* no reader: a manifest */
    ask.reader = "";
    assert_int_equal(weir_directory_ask_group(client, address, "rank 0", "uid", "rank-0", &ask, 0,
                                              &buffer, &buffer_bytes, &n_bytes),
                     WEIR_ERR_REFUSED);
    assert_non_null(strstr(weir_last_error(), "AskGroup: INVALID_ARGUMENT: reader is required"));
    weir_manifest_service_close(service);
    weir_directory_client_close(client);
    weir_free(buffer);
}

static void test_a_host_that_is_not_ours_is_named(void **state)
{
    (void)state;
    owner o = { "rank-0", "x", 1, 0 };
    weir_manifest_source source = { find, done, &o };
    weir_manifest_service *service;
    const weir_rpc_security open = { .insecure = true };
    assert_int_equal(weir_manifest_service_open("192.0.2.1", &source, NULL, &service),
                     WEIR_ERR_REFUSED);
    assert_non_null(
        strstr(weir_last_error(), "192.0.2.1:0: not without a certificate and a token"));
    assert_int_equal(weir_manifest_service_open("192.0.2.1", &source, &open, &service),
                     WEIR_ERR_IO);
    assert_non_null(strstr(weir_last_error(), "cannot listen on 192.0.2.1:0: "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_manifests_come_from_many_workers),
        cmocka_unit_test(test_a_large_manifest_again_takes_nothing_from_the_heap),
        cmocka_unit_test(test_refusals_name_the_worker),
        cmocka_unit_test(test_what_a_reader_says_of_a_group_arrives),
        cmocka_unit_test(test_a_host_that_is_not_ours_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
