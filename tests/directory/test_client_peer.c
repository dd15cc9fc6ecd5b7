/* SPDX-License-Identifier: Apache-2.0 */
/* test_client_peer.c - the client against a server by Python's own gRPC (peer_server.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "directory/client.h"

#define TIMEOUT_MS 20000

typedef struct peer {
    pid_t pid;
    int to, from;
    char address[64];
    weir_directory_client *client;
} peer;

static void run_python(const char *source, int to[2], int from[2])
{
    char script[1024];
    snprintf(script, sizeof(script), "%s/tests/directory/peer_server.py", source);
    dup2(to[0], 0);
    dup2(from[1], 1);
    close(to[1]);
    unsetenv("LD_PRELOAD");
    execl("/usr/bin/python3", "python3", script, (char *)NULL);
    _exit(127);
}

static int start_peer(void **state)
{
    static peer p;
    const char *source = getenv("WEIR_TEST_SOURCE");
    int to[2], from[2];
    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(from), 0);
    p.pid = fork();
    if (p.pid == 0)
        run_python(source != NULL ? source : ".", to, from);
    close(to[0]);
    close(from[1]);
    p.to = to[1];
    p.from = from[0];
    for (size_t n = 0; n + 1 < sizeof(p.address); n++) {
        if (read(p.from, &p.address[n], 1) != 1 || p.address[n] == '\n') {
            p.address[n] = '\0';
            break;
        }
    }
    if (p.address[0] == '\0') {
        print_error("peer_server.py does not start: are python3-grpcio and "
                    "protobuf-compiler-grpc installed?\n");
        return -1;
    }
    *state = &p;
    return weir_directory_client_open(p.address, TIMEOUT_MS, &p.client) != WEIR_OK;
}

static int stop_peer(void **state)
{
    peer *p = *state;
    weir_directory_client_close(p->client);
    close(p->to);
    waitpid(p->pid, NULL, 0);
    close(p->from);
    return 0;
}

static weir_directory_client *client_of(void **state)
{
    return ((peer *)*state)->client;
}

static void assert_error_has(const char *piece)
{
    if (strstr(weir_last_error(), piece) == NULL)
        fail_msg("'%s' is not in '%s'", piece, weir_last_error());
}

static void test_presence_is_sent_and_read(void **state)
{
    static const char *const slots[] = { "rank-0", "rank-1" };
    weir_version_record version;
    weir_directory_client *client = client_of(state);
    assert_int_equal(weir_directory_create_version(client, "m\xc3\xa9", 0, "k", slots, 2, &version),
                     WEIR_OK);
    assert_string_equal(version.model, "m\xc3\xa9");
    assert_true(version.has_number && version.number == 0);
    assert_string_equal(weir_directory_version_slot(client, 1), "rank-1");
    assert_int_equal(weir_directory_get_version(client, "without", &version), WEIR_OK);
    assert_false(version.has_number);
    assert_int_equal(weir_directory_get_version(client, "zero", &version), WEIR_OK);
    assert_true(version.has_number && version.number == 0);
    assert_int_equal(weir_directory_get_version(client, "00000002", &version), WEIR_OK);
    assert_true(version.number == UINT64_MAX);
    assert_int_equal(version.state, WEIR_VERSION_READY);
}

static void test_codes_become_statuses(void **state)
{
    static const struct {
        const char *code;
        weir_status status;
    } rows[] = {
        { "NOT_FOUND", WEIR_ERR_NOT_FOUND },         { "UNAVAILABLE", WEIR_ERR_PEER_LOST },
        { "DEADLINE_EXCEEDED", WEIR_ERR_TIMED_OUT }, { "UNIMPLEMENTED", WEIR_ERR_UNSUPPORTED },
        { "FAILED_PRECONDITION", WEIR_ERR_REFUSED }, { "PERMISSION_DENIED", WEIR_ERR_REFUSED }
    };
    weir_version_record version;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char uid[64], expected[64];
        snprintf(uid, sizeof(uid), "deny:%s", rows[i].code);
        snprintf(expected, sizeof(expected), "GetWeightVersion: %s: d??nied, 100%%", rows[i].code);
        assert_int_equal(weir_directory_get_version(client_of(state), uid, &version),
                         rows[i].status);
        assert_error_has(expected);
    }
    assert_int_equal(weir_directory_get_version(client_of(state), "crash", &version),
                     WEIR_ERR_REFUSED);
    assert_error_has("UNKNOWN: Exception calling application");
    assert_int_equal(weir_directory_delete_version(client_of(state), "x"), WEIR_ERR_UNSUPPORTED);
}

static void test_a_slow_server_is_left_in_time(void **state)
{
    weir_directory_client *hasty;
    weir_version_record version;
    assert_int_equal(weir_directory_client_open(((peer *)*state)->address, 300, &hasty), WEIR_OK);
    double begin = weir_now_s();
    assert_int_equal(weir_directory_get_version(hasty, "slow", &version), WEIR_ERR_TIMED_OUT);
    assert_true(weir_now_s() - begin < 2.5);
    weir_directory_client_close(hasty);
}

static void test_what_does_not_fit_is_named(void **state)
{
    weir_version_record version;
    char lease[WEIR_ID_BYTES];
    weir_directory_client *client = client_of(state);
    assert_int_equal(weir_directory_get_version(client, "wide", &version), WEIR_ERR_FORMAT);
    assert_error_has("version wide expects 1025 shards, at most 1024 are allowed");
    assert_int_equal(weir_directory_get_version(client, "long", &version), WEIR_ERR_FORMAT);
    assert_error_has("WeightVersion.model_name has 256 bytes, at most 255 are allowed");
    assert_int_equal(weir_directory_register_lease(client, "v", "short", 9, lease), WEIR_OK);
    assert_int_equal(strlen(lease), 63);
    assert_int_equal(weir_directory_register_lease(client, "v", "long", 9, lease), WEIR_ERR_FORMAT);
    weir_shard_record shard = { .worker_id = "forgets" };
    assert_int_equal(weir_directory_create_shard(client, &shard, &version), WEIR_ERR_FORMAT);
    assert_error_has("CreateWeightVersionShard gave no version");
}

static void test_lists_of_shards_come_whole(void **state)
{
    weir_shard_record *shards = calloc(400, sizeof(*shards));
    size_t n;
    assert_int_equal(weir_directory_list_shards(client_of(state), "v", shards, 400, &n), WEIR_OK);
    assert_int_equal(n, 500);
    assert_string_equal(shards[399].slot, "rank-399");
    assert_string_equal(shards[399].worker_id, "w\xc3\xa9"
                                               "399");
    assert_string_equal(shards[399].manifest_endpoint, "[::1]:399");
    assert_true(shards[399].n_bytes == (uint64_t)1 << 63);
    free(shards);
}

static void test_a_manifest_of_eight_mebibytes(void **state)
{
    peer *p = *state;
    unsigned char *buffer = NULL;
    size_t buffer_bytes = 0, n_bytes;
    char digest[WEIR_DIGEST_TEXT];
    assert_int_equal(weir_directory_get_manifest(p->client, p->address, "trainer rank 1", "v",
                                                 "rank-1", &buffer, &buffer_bytes, &n_bytes,
                                                 digest),
                     WEIR_OK);
    assert_int_equal(n_bytes, (size_t)8 << 20);
    for (size_t i = 0; i < n_bytes; i++) {
        if (buffer[i] != (unsigned char)i)
            fail_msg("byte %zu is %u", i, buffer[i]);
    }
    assert_int_equal(strlen(digest), 71);
    weir_free(buffer);
}

static void test_sources_of_weir_and_of_others(void **state)
{
    weir_directory_client *client = client_of(state);
    weir_source_record in = { .worker_id = "mine",
                              .model = "m",
                              .run = "r",
                              .role = "trainer",
                              .rank = 3,
                              .n_ranks = 4,
                              .status = WEIR_SOURCE_READY,
                              .version = 7,
                              .version_uid = "u",
                              .endpoint = "e:1",
                              .note = "\"n\\\"" };
    weir_source_record out;
    char source_id[WEIR_ID_BYTES];
    assert_int_equal(weir_directory_publish_source(client, &in, source_id), WEIR_OK);
    assert_int_equal(weir_directory_get_source(client, source_id, "mine", &out), WEIR_OK);
    assert_int_equal(out.version, 7);
    assert_string_equal(out.run, "r");
    assert_string_equal(out.note, "\"n\\\"");
    assert_int_equal(weir_directory_get_source(client, "x", "foreign", &out), WEIR_OK);
    assert_int_equal(out.version, 9);
    assert_string_equal(out.role, "trainer");
    assert_string_equal(out.version_uid, "");
    assert_int_equal(weir_directory_get_source(client, "x", "bad", &out), WEIR_ERR_FORMAT);
    assert_error_has("source x of bad: descriptor __mx_weir__ is malformed: 'no number'");
    assert_int_equal(weir_directory_get_source(client, "x", "nobody", &out), WEIR_ERR_NOT_FOUND);
    assert_int_equal(weir_directory_update_status(client, "x", "w", 0, WEIR_SOURCE_READY),
                     WEIR_ERR_REFUSED);
    assert_error_has("UpdateStatus: refused without a reason");
}

static void test_a_server_that_ignores_filters(void **state)
{
    weir_source_ref refs[4];
    size_t n;
    assert_int_equal(weir_directory_list_sources(client_of(state), "m", 0, 0, refs, 4, &n),
                     WEIR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(refs[0].version, 0);
    assert_int_equal(refs[0].updated_at_ms, 7);
}

static void test_a_server_of_modelexpress_is_known_by_what_it_lacks(void **state)
{
    weir_directory_client *client;
    weir_await_answer answer;
    assert_int_equal(weir_directory_client_open(((peer *)*state)->address, TIMEOUT_MS, &client),
                     WEIR_OK);
    assert_false(weir_directory_is_plain(client));
    assert_int_equal(
        weir_directory_await_replicas(client, "m", "00000001", 1, 1000, NULL, 0, &answer),
        WEIR_ERR_UNSUPPORTED);
    assert_true(weir_directory_is_plain(client));
    assert_int_equal(weir_directory_abort_version(client, "00000001", "w", ""),
                     WEIR_ERR_UNSUPPORTED);
    assert_int_equal(weir_directory_client_messages(client), 1);
    weir_directory_client_close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presence_is_sent_and_read),
        cmocka_unit_test(test_codes_become_statuses),
        cmocka_unit_test(test_a_slow_server_is_left_in_time),
        cmocka_unit_test(test_what_does_not_fit_is_named),
        cmocka_unit_test(test_lists_of_shards_come_whole),
        cmocka_unit_test(test_a_manifest_of_eight_mebibytes),
        cmocka_unit_test(test_sources_of_weir_and_of_others),
        cmocka_unit_test(test_a_server_that_ignores_filters),
        cmocka_unit_test(test_a_server_of_modelexpress_is_known_by_what_it_lacks),
    };
    return cmocka_run_group_tests(tests, start_peer, stop_peer);
}
