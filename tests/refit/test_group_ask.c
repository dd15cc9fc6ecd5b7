/* SPDX-License-Identifier: Apache-2.0 */
/* test_group_ask.c - what ranks that broadcast say to their readers, and what readers make of it.
 * Groups that are read are in test_window.c. */
#include "refit/catch_bench.h"

static void a_group_with_another_header_is_refused(void **state)
{
    (void)state;
    static const struct {
        weir_group_record other;
        const char *line;
    } cases[] = {
        { { .format = 0 }, "group 0 has a header of format 0, 1 is known" },
        { { .run = "other" }, "group 0 is of run other, this replica follows run" },
        { { .version = 6 }, "group 0 is of version 6, 7 was asked for" },
        { { .version_uid = "later" }, "group 0 is of version 7 as later, uid was asked for" },
        { { .group = 3 }, "group 3 of 6 came, 0 of 6 was asked for" },
        { { .n_groups = 7 }, "group 0 of 7 came, 0 of 6 was asked for" },
        { { .n_bytes = 77 }, "group 0 has 77 bytes, its manifest says 1024" },
        { { .n_digests = 2 }, "group 0 has 1 shards, and 2 digests" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        bool landed;
        bench *b = open_bench(WEIR_INSTALL_DIRECT);
        const weir_group_record *other = &cases[i].other;
        weir_group_record *header = &b->ranks[1].header;
        if (i == 0)
            header->format = 0;
        header->run = other->run != NULL ? other->run : header->run;
        header->version = other->version != 0 ? other->version : header->version;
        if (other->version_uid != NULL)
            header->version_uid = other->version_uid;
        header->n_groups = other->n_groups != 0 ? other->n_groups : header->n_groups;
        header->group = other->group;
        header->n_bytes = other->n_bytes;
        header->n_digests = other->n_digests;
        header->digests = b->digests[1];
        expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT, cases[i].line);
        assert_non_null(strstr(weir_last_error(), "trainer rank 1: "));
        expect_left(b, cases[i].line);
        close_bench(b);
    }
}

static void a_newer_header_is_refused_by_number(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[0].header.format = WEIR_GROUP_FORMAT + 1;
    expect_fails(refit_once(b, &landed), WEIR_ERR_UNSUPPORTED,
                 "record of a group: format 2, this build reads 1");
    expect_untouched(b);
    close_bench(b);
}

static void a_round_that_is_off_is_left_and_the_next_begins_afresh(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        bool landed;
        bench *b = open_bench((weir_install_mode)mode);
        b->ranks[1].off_at = 2;
        expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST,
                     "trainer rank 1 has stopped sending version 7: layers.3.weight is not finite");
        if (mode == WEIR_INSTALL_STAGED)
            expect_untouched(b);
        expect_left(b, "layers.3.weight is not finite");
        for (uint32_t r = 0; r < N_RANKS; r++) {
            b->ranks[r].off_at = UINT32_MAX;
            b->ranks[r].round = 2;
            b->ranks[r].is_left = false;
            new_cast(b, r, 0);
            new_cast(b, r, 1);
        }
        must(refit_once(b, &landed));
        expect_installed(b);
        for (uint32_t r = 0; r < N_RANKS; r++)
            assert_int_equal(b->ranks[r].n_fresh, 2);
        close_bench(b);
    }
}

static void who_broke_a_group_says_why(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[0].off_at = 0;
    script_net.casts[b->casts[0][0]].is_broken = WEIR_ERR_PEER_LOST;
    expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST,
                 "trainer rank 0 has stopped sending version 7: layers.3.weight is not finite");
    close_bench(b);
}

/* Asking for what comes behind the last group says that all were taken. */
static void who_asks_why_the_last_group_broke_has_not_taken_it(void **state)
{
    (void)state;
    for (int breaks = 0; breaks <= 1; breaks++) {
        bool landed;
        bench *b = open_bench(WEIR_INSTALL_STAGED);
        script_cast *cast = &script_net.casts[b->casts[0][0]];
        cast->n_ends = 3; /* of its four */
        cast->then_breaks = WEIR_ERR_PEER_LOST;
        b->ranks[0].off_at = breaks ? N_GROUPS - 1 : UINT32_MAX;
        expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST,
                     breaks ? "trainer rank 0 has stopped sending version 7: layers.3"
                            : "the group is broken");
        assert_int_equal(b->ranks[0].n_ends_asked, 0);
        expect_left(b, breaks ? "layers.3.weight is not finite" : "the group is broken");
        close_bench(b);
    }
}

static void a_reader_is_fresh_until_all_its_groups_are_joined(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    script_cast *last = &script_net.casts[b->casts[1][1]];
    b->replica.worker.timeout_ms = 200;
    last->holds_join = true;
    b->ranks[1].n_made = 0; /* so that it goes on asking */
    expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT,
                 "timed out after 0.2 s: not all have joined broadcast group 2 of trainer rank 1 "
                 "for version 7");
    assert_true(b->ranks[1].n_outside > 0);
    assert_int_equal(b->ranks[1].n_inside, 0);
    last->holds_join = false;
    b->ranks[1].n_made = UINT32_MAX;
    for (uint32_t r = 0; r < N_RANKS; r++)
        b->ranks[r].n_outside = 0;
    must(refit_once(b, &landed));
    for (uint32_t r = 0; r < N_RANKS; r++) {
        assert_int_equal(b->ranks[r].n_outside, 0);
        assert_true(b->ranks[r].n_inside > 0);
    }
    close_bench(b);
}

static void a_transport_has_time_to_say_why_a_group_is_not_joined(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->replica.worker.timeout_ms = 200;
    script_cast *last = &script_net.casts[b->casts[1][1]];
    last->holds_join = true;
    last->says_so = true;
    expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT,
                 "broadcast group 2 of trainer rank 1: it was not joined within 0.2 s");
    close_bench(b);
}

static void who_comes_too_late_is_told(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[0].state = WEIR_GROUP_GONE;
    expect_fails(refit_once(b, &landed), WEIR_ERR_NOT_FOUND,
                 "replica replica-0 came too late for version 7: its group 0 is gone at trainer "
                 "rank 0");
    b->ranks[0].state = 9;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT,
                 "trainer rank 0: group 0 is in state 9, which is unknown");
    close_bench(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_group_with_another_header_is_refused),
        cmocka_unit_test(a_newer_header_is_refused_by_number),
        cmocka_unit_test(a_round_that_is_off_is_left_and_the_next_begins_afresh),
        cmocka_unit_test(who_broke_a_group_says_why),
        cmocka_unit_test(who_asks_why_the_last_group_broke_has_not_taken_it),
        cmocka_unit_test(a_reader_is_fresh_until_all_its_groups_are_joined),
        cmocka_unit_test(a_transport_has_time_to_say_why_a_group_is_not_joined),
        cmocka_unit_test(who_comes_too_late_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
