/* SPDX-License-Identifier: Apache-2.0 */
/* test_transport_table.c - the order of transports, looking one up, and structs of other sizes. */
#include "transport/transport_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"

static void every_built_transport_fills_every_slot(void **state)
{
    (void)state;
    weir_transport_info infos[8];
    size_t n = weir_transports(infos, 8);
    static const char *const order[] = { "ucx", "cuda_ipc", "nccl", "file" };
    assert_int_equal(n, sizeof(order) / sizeof(order[0]));
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(infos[i].name, order[i]);
        assert_true(infos[i].ops != NULL || !infos[i].available);
        assert_int_equal(infos[i].available, strlen(infos[i].why_not) == 0);
        if (infos[i].ops == NULL)
            continue;
        const weir_transport_ops *ops = infos[i].ops;
        assert_int_equal(ops->size, sizeof(*ops));
        assert_string_equal(ops->name, infos[i].name);
        assert_true(ops->open && ops->close && ops->allocate && ops->expose && ops->release);
        assert_true(ops->region_data && ops->seal && ops->region_key && ops->address);
        assert_true(ops->connect && ops->disconnect && ops->import && ops->forget);
        assert_true(ops->post && ops->test && ops->finish && ops->map);
        assert_true(ops->group_key && ops->group_open && ops->group_test && ops->group_broadcast);
        assert_true(ops->group_close);
    }
    assert_int_equal(weir_transports(NULL, 0), n);
}

static void a_transport_is_found_by_name_or_by_preference(void **state)
{
    (void)state;
    const weir_transport_ops *ops = NULL, *first = NULL;
    assert_int_equal(weir_transport_get("file", &ops), WEIR_OK);
    assert_string_equal(ops->name, "file");
    assert_int_equal(weir_transport_get(NULL, &first), WEIR_OK);
    assert_string_equal(first->name, WEIR_HAVE_UCX ? "ucx" : "file");
    assert_int_equal(weir_transport_get("pigeon", &ops), WEIR_ERR_NOT_FOUND);
    assert_non_null(strstr(weir_last_error(), "unknown transport 'pigeon'; this build has: "));
    assert_non_null(strstr(weir_last_error(), "cuda_ipc"));
    assert_string_equal(ops->name, "file");
    if (!WEIR_HAVE_UCX)
        assert_int_equal(weir_transport_get("ucx", &ops), WEIR_ERR_UNSUPPORTED);
}

/* Whoever asks for none by name has host memory in mind. */
static void without_a_name_it_is_one_for_host_memory(void **state)
{
    (void)state;
    const weir_transport_ops *ops = NULL;
    assert_int_equal(weir_transport_get(NULL, &ops), WEIR_OK);
    assert_true((ops->memory & WEIR_MEMORY_HOST) != 0);
}

static void one_that_cannot_run_here_says_why(void **state)
{
    (void)state;
    weir_transport_info infos[8];
    size_t n = weir_transports(infos, 8);
    for (size_t i = 0; i < n; i++) {
        const weir_transport_ops *ops = NULL;
        weir_status status = weir_transport_get(infos[i].name, &ops);
        assert_int_equal(status, infos[i].available ? WEIR_OK : WEIR_ERR_UNSUPPORTED);
        if (!infos[i].available)
            assert_non_null(strstr(weir_last_error(), infos[i].why_not));
    }
}

static void structs_of_other_sizes_are_read_or_refused(void **state)
{
    (void)state;
    struct {
        weir_seal seal;
        uint64_t tail;
    } longer = { .seal = { .size = sizeof(longer), .region = 5 } };
    weir_seal out;
    assert_int_equal(weir_transport_struct_read(&longer, sizeof(out), "weir_seal", &out), WEIR_OK);
    assert_int_equal(out.region, 5);
    longer.tail = 1;
    assert_int_equal(weir_transport_struct_read(&longer, sizeof(out), "weir_seal", &out),
                     WEIR_ERR_INVALID);
    longer.seal.size = offsetof(weir_seal, region); /* an older caller's */
    assert_int_equal(weir_transport_struct_read(&longer, sizeof(out), "weir_seal", &out), WEIR_OK);
    assert_int_equal(out.region, 0);
    longer.seal.size = 3;
    assert_int_equal(weir_transport_struct_read(&longer, sizeof(out), "weir_seal", &out),
                     WEIR_ERR_INVALID);
    memset(&out, 1, sizeof(out));
    assert_int_equal(weir_transport_struct_read(NULL, sizeof(out), "weir_seal", &out), WEIR_OK);
    assert_true(out.model == NULL && out.n_shards == 0);
}

/* A transport whose transfer moves as many bytes per test as its script says. */
typedef struct scripted {
    weir_transfer base;
    const int *script; /* bytes to add; negative: a status; 0 repeats for ever at its end */
    uint64_t done;
} scripted;

static weir_status scripted_test(weir_transfer *transfer, uint64_t *out_done)
{
    scripted *self = (scripted *)transfer;
    weir_sleep_ms(1);
    if (*self->script < 0)
        return (weir_status)*self->script;
    self->done += (uint64_t)*self->script;
    if (*self->script != 0)
        self->script++;
    *out_done = self->done;
    return self->done >= self->base.n_bytes ? WEIR_OK : WEIR_IN_PROGRESS;
}

static weir_status wait_script(const int *script, unsigned timeout_ms)
{
    weir_transport_ops ops = { .size = sizeof(ops), .name = "scripted", .test = scripted_test };
    weir_transport transport = { &ops };
    weir_peer peer = { &transport, "trainer rank 3" };
    scripted self = { { &peer, 100 }, script, 0 };
    return weir_transfer_wait(&self.base, timeout_ms);
}

static void waiting_ends_with_the_transfer_or_after_a_standstill(void **state)
{
    (void)state;
    const int whole[] = { 50, 50 }, failed[] = { 50, WEIR_ERR_PEER_LOST }, stuck[] = { 60, 0 };
    assert_int_equal(wait_script(whole, 1000), WEIR_OK);
    assert_int_equal(wait_script(failed, 1000), WEIR_ERR_PEER_LOST);
    assert_int_equal(wait_script(stuck, 100), WEIR_ERR_TIMED_OUT);
    assert_string_equal(weir_last_error(), "trainer rank 3: nothing arrived for 0.1 s (transport "
                                           "scripted, 60 of 100 bytes)");
    const int slow[] = { 10, 10, 10, 10, 10, 10, 10, 10, 10, 10 }; /* progress renews the bound */
    assert_int_equal(wait_script(slow, 5), WEIR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_built_transport_fills_every_slot),
        cmocka_unit_test(a_transport_is_found_by_name_or_by_preference),
        cmocka_unit_test(without_a_name_it_is_one_for_host_memory),
        cmocka_unit_test(one_that_cannot_run_here_says_why),
        cmocka_unit_test(structs_of_other_sizes_are_read_or_refused),
        cmocka_unit_test(waiting_ends_with_the_transfer_or_after_a_standstill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
