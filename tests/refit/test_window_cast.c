/* SPDX-License-Identifier: Apache-2.0 */
/* test_window_cast.c - rounds of a trainer rank whose groups are broadcast, to readers that the
 * tests are, over a stand-in. Whole refits are in test_cast_refit.c. */
#include "refit/cast_rig.h"

/* ---- rounds ----------------------------------------------------------------------------------*/

static void every_worker_is_sent_its_part_and_nothing_is_made_twice(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[4] = { open_reader(s, "b-1", 1), open_reader(s, "a-0", 0),
                           open_reader(s, "a-1", 1), open_reader(s, "b-0", 0) };
    publish(s, 1);
    refit(s, readers, 4, 2);
    const weir_groups *groups = &s->trainer->window->groups;
    size_t n_audiences = 0;
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++)
        n_audiences += readers[0]->seats[a] != NULL || readers[1]->seats[a] != NULL;
    assert_int_equal(n_audiences, 3); /* of worker 0, of worker 1, of both */
    for (uint32_t g = 1; g < groups->n_groups; g++)
        assert_true(groups->keys[g] >= groups->keys[g - 1]);
    uint64_t n_keys = s->all->n_keys;
    weir_counters before = s->trainer->worker.counters;
    assert_int_equal(before.connections, 3);
    assert_int_equal(before.registrations, 0); /* plain memory */
    for (unsigned version = 2; version <= 3; version++) {
        publish(s, version);
        refit(s, readers, 4, 2);
    }
    const weir_counters *after = &s->trainer->worker.counters;
    assert_int_equal(s->all->n_keys, n_keys);
    assert_int_equal(after->connections, before.connections);
    assert_int_equal(after->allocations, before.allocations);
    assert_int_equal(after->plans, before.plans);
    for (size_t i = 0; i < 4; i++)
        close_reader(readers[i]);
    close_stage(s);
}

static void a_group_is_converted_while_the_one_before_is_on_the_wire(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    s->all->held = true;
    start_reader(a);
    start_reader(b);
    start_round(s, 1, LONG_MS);
    await_that(stand_in_count(s->all, &s->all->n_broadcast) == 2);
    assert_int_equal(stand_in_count(s->all, &s->all->n_ended), 0); /* both buffers are on it */
    pthread_mutex_lock(&s->trainer->lock);
    assert_int_equal(s->trainer->window->credits.made, 2);
    pthread_mutex_unlock(&s->trainer->lock);
    hold(s, false);
    join_reader(a);
    join_reader(b);
    end_round(s, WEIR_OK, "");
    assert_int_equal(s->all->n_broadcast, n_groups_of(s));
    assert_int_equal(s->all->n_ended, n_groups_of(s));
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void who_comes_late_is_told_and_is_in_the_next_round(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[3] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1),
                           open_reader(s, "late-0", 0) };
    publish(s, 1);
    assert_int_equal(ask(readers[0], 0).state, WEIR_GROUP_WAIT);
    assert_int_equal(ask(readers[0], 0).round, 0); /* nobody has begun */
    hold(s, true);
    start_reader(readers[0]);
    start_reader(readers[1]);
    start_round(s, 1, LONG_MS);
    await_that(stand_in_count(s->all, &s->all->n_broadcast) == 2);
    assert_int_equal(ask(readers[2], 0).state, WEIR_GROUP_WAIT);
    assert_int_equal(ask(readers[2], 0).round, 0); /* it is not in this one */
    assert_true(ask(readers[2], 0).left_out);
    hold(s, false);
    join_reader(readers[0]);
    join_reader(readers[1]);
    end_round(s, WEIR_OK, "");
    assert_int_equal(ask(readers[2], 0).state, WEIR_GROUP_WAIT); /* until all say they hold it */
    assert_false(ask(readers[2], 0).left_out);
    publish(s, 2);
    readers[2]->round = readers[0]->round = readers[1]->round = 0;
    for (size_t i = 0; i < 3; i++)
        ask(readers[i], 0);
    refit(s, readers, 3, 1); /* one more than is waited for, but it is there */
    for (size_t i = 0; i < 3; i++)
        close_reader(readers[i]);
    close_stage(s);
}

static void a_fresh_reader_joins_anew_and_the_others_stay(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    uint64_t keys[3], found[3] = { 0 };
    publish(s, 1);
    refit(s, readers, 2, 1);
    for (size_t a = 0; a < 3; a++) {
        const reader *r = readers[0]->seats[a] != NULL ? readers[0] : readers[1];
        memcpy(&keys[a], weir_matched_key(r->seats[a]), sizeof(keys[a]));
    }
    leave_seats(readers[1]);
    publish(s, 2);
    refit(s, readers, 2, 1);
    for (size_t a = 0; a < 3; a++) {
        const reader *r = readers[0]->seats[a] != NULL ? readers[0] : readers[1];
        memcpy(&found[a], weir_matched_key(r->seats[a]), sizeof(found[a]));
        assert_int_equal(found[a] == keys[a], readers[1]->seats[a] == NULL);
    }
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

static void readers_are_answered_while_old_groups_are_closed(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    publish(s, 1);
    refit(s, readers, 2, 1);
    leave_seats(readers[1]);
    publish(s, 2);
    for (size_t i = 0; i < 2; i++) {
        readers[i]->round = 0;
        ask(readers[i], 0);
    }
    hold_leaving(s, true);
    start_round(s, 1, LONG_MS);
    await_that(stand_in_count(s->all, &s->all->n_leaving) == 1);
    assert_int_equal(ask(readers[0], 0).state, WEIR_GROUP_WAIT);
    hold_leaving(s, false);
    for (size_t i = 0; i < 2; i++)
        start_reader(readers[i]);
    for (size_t i = 0; i < 2; i++)
        join_reader(readers[i]);
    end_round(s, WEIR_OK, "");
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

/* A GPU's library may have registered them. */
static void buffers_outlive_the_groups_that_they_were_broadcast_in(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    s->all->buffer = &s->trainer->slots[0].data;
    publish(s, 1);
    refit(s, readers, 2, 1);
    for (size_t i = 0; i < 2; i++)
        leave_seats(readers[i]);
    weir_tensor *norm = &s->r.model.tensors[s->r.model.n - 1];
    norm->dtype = WEIR_F32; /* another layout: all is made anew */
    weir_trainer_register(s->trainer, s->r.model.tensors, s->r.model.n);
    norm->dtype = WEIR_BF16;
    assert_int_equal(s->all->n_leaving, 3);
    assert_int_equal(s->all->n_bereft, 0);
    for (size_t i = 0; i < 2; i++)
        close_reader(readers[i]);
    close_stage(s);
}

static void a_trainer_that_goes_leaves_its_groups_before_its_buffers(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    s->all->buffer = &s->trainer->slots[0].data;
    publish(s, 1);
    refit(s, readers, 2, 1);
    close_reader(readers[0]);
    close_reader(readers[1]);
    weir_trainer_close(s->trainer);
    s->trainer = NULL;
    assert_int_equal(s->all->n_leaving, 3);
    assert_int_equal(s->all->n_bereft, 0);
    close_stage(s);
}

/* ---- what fails ------------------------------------------------------------------------------*/

static void who_has_not_come_is_counted(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0);
    publish(s, 1);
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_WAIT);
    start_round(s, 2, SHORT_MS);
    await_that(ask(a, 0).state == WEIR_GROUP_WAIT); /* it goes on asking */
    end_round(s, WEIR_ERR_TIMED_OUT,
              "trainer rank 0: timed out after 0.3 s: 1 of 2 replicas have a worker 0 that has "
              "come for version 1 of model");
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_WAIT); /* the next call may find all */
    close_reader(a);
    close_stage(s);
}

static void groups_stand_when_too_few_have_come(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    publish(s, 1);
    refit(s, readers, 2, 1);
    uint64_t n_keys = s->all->n_keys;
    publish(s, 2);
    start_round(s, 1, 100);
    end_round(s, WEIR_ERR_TIMED_OUT, "0 of 1 replicas have a worker 0 that has come");
    assert_int_equal(s->all->n_aborted, 0);
    refit(s, readers, 2, 1);
    assert_int_equal(s->all->n_keys, n_keys);
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

/* Until the round is over; no longer than a few seconds. */
static void come_and_go(reader *r, uint32_t group)
{
    weir_group_record record;
    for (int turn = 0; turn < 80 && !r->s->is_over; turn++) {
        assert_ok(put(r, group, turn % 2 == 0 ? NULL : "it has changed its mind", &record));
        weir_sleep_ms(50);
    }
}

static void who_comes_and_goes_keeps_no_trainer_that_gathers(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0);
    publish(s, 1);
    start_round(s, 1, SHORT_MS);
    come_and_go(a, 0);
    end_round(s, WEIR_ERR_TIMED_OUT, "0 of 1 replicas have a worker ");
    assert_true(s->took_s < 2); /* of the four that it goes on */
    close_reader(a);
    close_stage(s);
}

static void who_comes_and_goes_renews_no_bound_of_others(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    reader *other = open_reader(s, "other-0", 0);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, SHORT_MS);
    join_round(a);
    ask(a, 0);
    come(b); /* and stays outside */
    come_and_go(other, 1);
    end_round(s, WEIR_ERR_TIMED_OUT, "a-1 (worker 1 of its engine) has not joined");
    assert_true(s->took_s < 2); /* of the four that it goes on */
    close_reader(a);
    close_reader(b);
    close_reader(other);
    close_stage(s);
}

static void who_does_not_join_is_named(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, SHORT_MS);
    join_round(a);
    ask(a, 0);
    come(b); /* and stays outside */
    end_round(s, WEIR_ERR_TIMED_OUT,
              "trainer rank 0: timed out after 0.3 s: a-1 (worker 1 of its engine) has not joined "
              "the broadcast groups of version 1 of model, nor asked since the round began");
    weir_group_record off = ask(a, 0);
    assert_int_equal(off.state, WEIR_GROUP_OFF);
    assert_non_null(strstr(off.why, "a-1 (worker 1 of its engine) has not joined"));
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void a_broadcast_that_does_not_end_names_who_has_not_taken_it(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    publish(s, 1);
    ask(readers[0], 0);
    ask(readers[1], 0);
    start_round(s, 1, SHORT_MS);
    join_round(readers[0]);
    join_round(readers[1]);
    catch_group(readers[0], 0); /* of worker 0 alone */
    await_that(ask(readers[0], 1).state == WEIR_GROUP_READY);
    end_round(s, WEIR_ERR_TIMED_OUT, "timed out after 0.3 s: the broadcast of group 1 of ");
    assert_non_null(strstr(
        s->line, "of version 1 of model has not ended: a-0 (worker 0) has not asked beyond"));
    assert_int_equal(s->all->n_aborted, 3);
    assert_error(weir_matched_joined(readers[0]->seats[s->trainer->window->groups.audiences[0]]),
                 WEIR_ERR_PEER_LOST, "broken");
    for (size_t i = 0; i < 2; i++)
        leave_seats(readers[i]);
    refit(s, readers, 2, 1); /* the same call again, with new groups */
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

static void who_never_asks_behind_the_last_group_is_named(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    start_reader(b);
    ask(a, 0);
    start_round(s, 1, SHORT_MS);
    join_round(a);
    catch_until(a, n_groups_of(s));
    join_reader(b);
    end_round(s, WEIR_ERR_TIMED_OUT, "a-0 (worker 0 of its engine) has not taken all of version 1");
    assert_int_equal(ask(a, n_groups_of(s)).state, WEIR_GROUP_OFF);
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void who_gives_up_ends_the_round_with_its_reason(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    weir_group_record record;
    publish(s, 1);
    ask(readers[0], 0);
    ask(readers[1], 0);
    start_round(s, 1, LONG_MS);
    join_round(readers[0]);
    join_round(readers[1]);
    ask(readers[0], 0);
    assert_ok(put(readers[1], 0, "no more\nmemory", &record));
    end_round(s, WEIR_ERR_PEER_LOST,
              "trainer rank 0: a-1 (worker 1 of its engine) gave up version 1 at group 0 of ");
    assert_non_null(strstr(s->line, ": no more memory"));
    record = ask(readers[0], 0);
    assert_int_equal(record.state, WEIR_GROUP_OFF);
    assert_non_null(strstr(record.why, "no more memory"));
    for (size_t i = 0; i < 2; i++)
        leave_seats(readers[i]);
    refit(s, readers, 2, 1);
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

static void who_begins_anew_in_the_midst_ends_the_round(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, LONG_MS);
    join_round(a);
    join_round(b);
    ask(a, 0);
    leave_seats(a); /* its word that it gives up was lost */
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_WAIT);
    end_round(s, WEIR_ERR_PEER_LOST, "a-0 (worker 0 of its engine) gave up version 1");
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void a_transport_that_fails_ends_the_round_for_all(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    publish(s, 1);
    ask(readers[0], 0);
    ask(readers[1], 0);
    s->all->fails = true;
    start_round(s, 1, LONG_MS);
    join_round(readers[0]);
    join_round(readers[1]);
    end_round(s, WEIR_ERR_PEER_LOST, "trainer rank 0: the stand-in fails, as it was told");
    assert_int_equal(ask(readers[1], 0).state, WEIR_GROUP_OFF);
    s->all->fails = false;
    for (size_t i = 0; i < 2; i++)
        leave_seats(readers[i]);
    refit(s, readers, 2, 1);
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

static void a_wait_that_is_cancelled_is_off_for_its_readers(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, LONG_MS);
    join_round(a);
    weir_trainer_cancel(s->trainer);
    end_round(s, WEIR_ERR_CANCELLED, "cancelled");
    assert_int_equal(ask(a, 0).state, WEIR_GROUP_OFF);
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void a_worker_that_no_engine_has_is_answered_with_no(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *odd = open_reader(s, "odd-2", 2);
    weir_group_record record;
    publish(s, 1);
    assert_error(put(odd, 0, NULL, &record), WEIR_ERR_NOT_FOUND, "rank-0");
    close_reader(odd);
    close_stage(s);
}

/* Takes what there is, and hears the end. */
static void *run_until_off(void *context)
{
    reader *r = context;
    join_round(r);
    for (uint32_t g = next_group(r, 0);; g = next_group(r, g + 1)) {
        weir_group_record record = { 0 };
        await_that((record = ask(r, g)).state != WEIR_GROUP_WAIT);
        if (record.state == WEIR_GROUP_OFF)
            return NULL;
        catch_group(r, g);
    }
}

static void spoil(const stage *s)
{
    for (size_t t = 0; t < s->r.model.n; t++) {
        if (strcmp(s->r.model.tensors[t].name, "model.norm.weight") == 0)
            ((uint16_t *)s->r.model.tensors[t].data)[5] = 0x7fc0;
    }
}

static void a_weight_that_is_not_finite_is_found_before_or_while_it_is_sent(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    spoil(s);
    assert_int_equal(pthread_create(&a->thread, NULL, run_until_off, a), 0);
    assert_int_equal(pthread_create(&b->thread, NULL, run_until_off, b), 0);
    start_round(s, 1, LONG_MS);
    join_reader(a);
    join_reader(b);
    end_round(s, WEIR_ERR_NONFINITE, "trainer rank 0: model.norm.weight[5] is NaN");
    s->trainer->scan_first = true;
    assert_error(weir_trainer_publish(s->trainer, 2, NULL), WEIR_ERR_NONFINITE,
                 "trainer rank 0: model.norm.weight[5] is NaN");
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

/* ---- what cannot be broadcast ----------------------------------------------------------------*/

static void transports_that_do_not_broadcast_are_refused_by_name(void **state)
{
    (void)state;
    stage *s = open_stage();
    weir_trainer *other = NULL;
    assert_ok(open_trainer(&s->r, "file", WEIR_DELIVERY_PUSH, &other));
    assert_error(weir_trainer_register(other, s->r.model.tensors, s->r.model.n),
                 WEIR_ERR_UNSUPPORTED, "transport file cannot broadcast");
    assert_non_null(strstr(weir_last_error(), "nccl for tensors on a GPU and ucx for those in"));
    weir_trainer_close(other);
    close_stage(s);
}

/* Threads of the directory allocate too, so that the call itself may be spared. */
static void memory_that_is_lacking_is_an_error_that_leaves_all_as_it_was(void **state)
{
    (void)state;
    stage *s = open_stage();
    weir_trainer *other = NULL;
    const rig_model *model = &s->r.model;
    size_t n_failed = 0;
    assert_ok(open_trainer(&s->r, NULL, WEIR_DELIVERY_PUSH, &other));
    uint64_t before = weir_alloc_count();
    assert_ok(weir_trainer_register(other, model->tensors, model->n));
    uint64_t n_all = weir_alloc_count() - before;
    for (uint64_t n = 1; n <= n_all; n++) {
        weir_trainer_close(other);
        assert_ok(open_trainer(&s->r, NULL, WEIR_DELIVERY_PUSH, &other));
        weir_alloc_fail_at(n);
        weir_status status = weir_trainer_register(other, model->tensors, model->n);
        weir_alloc_fail_at(0);
        n_failed += status != WEIR_OK;
        if (status != WEIR_OK)
            assert_ok(weir_trainer_register(other, model->tensors, model->n));
    }
    assert_true(n_failed > n_all / 2);
    weir_trainer_close(other);
    close_stage(s);
}

static void as_many_as_wait_are_ready(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *readers[2] = { open_reader(s, "a-0", 0), open_reader(s, "a-1", 1) };
    unsigned n = 7;
    publish(s, 1);
    ask(readers[0], 0);
    assert_ok(weir_trainer_ready(s->trainer, 1, &n));
    assert_int_equal(n, 0); /* an engine of two */
    ask(readers[1], 0);
    assert_ok(weir_trainer_ready(s->trainer, 1, &n));
    assert_int_equal(n, 1);
    refit(s, readers, 2, 1);
    assert_ok(weir_trainer_ready(s->trainer, 1, &n));
    assert_int_equal(n, 1); /* that holds it */
    spoil(s);               /* nobody is there to whom it would be sent: nothing is converted */
    start_round(s, 1, SHORT_MS);
    end_round(s, WEIR_OK, "");
    close_reader(readers[0]);
    close_reader(readers[1]);
    close_stage(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_worker_is_sent_its_part_and_nothing_is_made_twice),
        cmocka_unit_test(a_group_is_converted_while_the_one_before_is_on_the_wire),
        cmocka_unit_test(who_comes_late_is_told_and_is_in_the_next_round),
        cmocka_unit_test(a_fresh_reader_joins_anew_and_the_others_stay),
        cmocka_unit_test(readers_are_answered_while_old_groups_are_closed),
        cmocka_unit_test(buffers_outlive_the_groups_that_they_were_broadcast_in),
        cmocka_unit_test(a_trainer_that_goes_leaves_its_groups_before_its_buffers),
        cmocka_unit_test(who_has_not_come_is_counted),
        cmocka_unit_test(groups_stand_when_too_few_have_come),
        cmocka_unit_test(who_comes_and_goes_keeps_no_trainer_that_gathers),
        cmocka_unit_test(who_comes_and_goes_renews_no_bound_of_others),
        cmocka_unit_test(who_does_not_join_is_named),
        cmocka_unit_test(a_broadcast_that_does_not_end_names_who_has_not_taken_it),
        cmocka_unit_test(who_never_asks_behind_the_last_group_is_named),
        cmocka_unit_test(who_gives_up_ends_the_round_with_its_reason),
        cmocka_unit_test(who_begins_anew_in_the_midst_ends_the_round),
        cmocka_unit_test(a_transport_that_fails_ends_the_round_for_all),
        cmocka_unit_test(a_wait_that_is_cancelled_is_off_for_its_readers),
        cmocka_unit_test(a_worker_that_no_engine_has_is_answered_with_no),
        cmocka_unit_test(a_weight_that_is_not_finite_is_found_before_or_while_it_is_sent),
        cmocka_unit_test(transports_that_do_not_broadcast_are_refused_by_name),
        cmocka_unit_test(memory_that_is_lacking_is_an_error_that_leaves_all_as_it_was),
        cmocka_unit_test(as_many_as_wait_are_ready),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
