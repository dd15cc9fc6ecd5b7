/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_killed.c - an owner of bytes outlives its readers, over TCP too, whenever they are
 * killed.
 */
#include "transport/conformance_bench.h"

#define N_KILLS 50u
#define N_OWNERS 12u
#define REGION_BYTES (32 * MIB)
#define LATEST_US 60000u /* connecting and reading once take about as long */

static const setting over_tcp = { "ucx over tcp", "ucx", "tcp", true, NULL, 0 };

/* What a reader in another process is told: read all of region 0. */
static owner_request *order_to_read(const bench *b, uint32_t seed)
{
    owner_request *request = calloc(1, sizeof(*request));
    request->op = OWNER_READ;
    request->seed = seed;
    request->n_bytes = LARGE;
    request->address_bytes = (uint32_t)b->address_bytes;
    request->blob_bytes = (uint32_t)(b->address_bytes + b->key_bytes);
    memcpy(request->blob, b->address, b->address_bytes);
    memcpy(request->blob + b->address_bytes, b->key, b->key_bytes);
    return request;
}

/* The same moments in every run: a linear congruence. */
static unsigned next_us(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % LATEST_US;
}

static void an_owner_outlives_readers_that_are_killed(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_EXPOSE, LARGE, 1);
    owner_request *request = order_to_read(b, 1);
    uint32_t random = 7;
    for (unsigned i = 0; i < N_KILLS; i++) {
        owner *reader = owner_open(b->setting->transport, b->setting->tls, b->directory);
        assert_ok(owner_call(reader, OWNER_ADDRESS, 0, 0, 0, "")); /* it has started */
        owner_send(reader, request);
        usleep(next_us(&random));
        owner_kill(reader);
        owner_reap(reader);
        owner_close(reader);
        if (waitpid(b->owner->pid, NULL, WNOHANG) != 0) {
            b->owner->pid = 0;
            fail_msg("the owner died of the reader that was killed as number %u", i + 1);
        }
    }
    free(request);
    assert_reads(b, 0, LARGE, 1);
}

/* Kills the owner once so many bytes are here. */
static void read_until_killed(bench *b, uint64_t n_bytes)
{
    weir_copy copy = { b->remote, 0, b->local, REGION_BYTES };
    weir_transfer *transfer = NULL;
    weir_status status = WEIR_IN_PROGRESS;
    uint64_t done = 0;
    bool killed = false;
    assert_ok(b->ops->post(b->peer, &copy, 1, &transfer));
    double begun = weir_now_s();
    while (status == WEIR_IN_PROGRESS && weir_now_s() - begun < 10) {
        if (!killed && done >= n_bytes) {
            owner_kill(b->owner);
            begun = weir_now_s();
            killed = true;
        }
        status = b->ops->test(transfer, &done);
    }
    assert_true(weir_now_s() - begun < 10); /* far below it, but for a machine that is busy */
    if (!killed) /* the last bytes came with those that it was to die of */
        owner_kill(b->owner);
    if (status == WEIR_OK) { /* all of it was on its way */
        assert_int_equal(done, REGION_BYTES);
        assert_int_equal(owner_compare(b->data, 0, REGION_BYTES, 2), REGION_BYTES);
    } else {
        assert_int_equal(status, WEIR_ERR_PEER_LOST);
        assert_non_null(strstr(weir_last_error(), "owner 0: peer went away: "));
    }
    b->ops->finish(transfer);
}

static void a_reader_outlives_owners_that_are_killed(void **state)
{
    bench *b = bench_of(state);
    uint32_t random = 11;
    for (unsigned i = 0; i < N_OWNERS; i++) {
        share(b, OWNER_EXPOSE, REGION_BYTES, 2);
        read_until_killed(b, (uint64_t)next_us(&random) * REGION_BYTES / LATEST_US);
        b->ops->forget(b->remote);
        b->ops->disconnect(b->peer);
        b->remote = NULL;
        b->peer = NULL;
        owner_reap(b->owner);
        owner_close(b->owner);
        b->owner = owner_open(b->setting->transport, b->setting->tls, b->directory);
    }
    share(b, OWNER_EXPOSE, REGION_BYTES, 2);
    assert_reads(b, 0, REGION_BYTES, 2);
}

#define CASE(function, setting_)                                                       \
    {                                                                                  \
#function, function, bench_open, bench_close, (void *)(uintptr_t) & (setting_) \
    }

int main(int argc, char **argv)
{
    if (argc == 5)
        return owner_main(argv[1], argv[2], argv[3], atoi(argv[4]));
    const struct CMUnitTest tests[] = {
        CASE(an_owner_outlives_readers_that_are_killed, over_tcp),
        CASE(a_reader_outlives_owners_that_are_killed, over_tcp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
