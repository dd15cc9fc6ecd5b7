/* SPDX-License-Identifier: Apache-2.0 */
/* test_redis_log.c - one order for all, and nothing acknowledged is lost, over a real redis-server
 * that is killed, halted and emptied. */
#include "directory/redis_fixture.h"

#include "weir/weir.h"

static member a, b, c;

static char log_lines[8192];

static void keep_line(void *context, weir_log_level level, const char *line)
{
    (void)context, (void)level;
    size_t n = strlen(log_lines);
    snprintf(log_lines + n, sizeof(log_lines) - n, "%s\n", line);
}

static int begin_lines(void **state)
{
    (void)state;
    log_lines[0] = '\0';
    weir_log_set(keep_line, NULL, WEIR_LOG_INFO);
    return 0;
}

static int end_lines(void **state)
{
    (void)state;
    weir_log_set(NULL, NULL, WEIR_LOG_ERROR);
    return 0;
}

/* ---- one order -------------------------------------------------------------------------------*/

static void test_two_directories_apply_the_same_in_one_order(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 0);
    member_begin(&b, &redis, 0);
    srandom(7);
    for (uint64_t number = 1; number <= 2000;) {
        for (long burst = random() % 20; burst >= 0; burst--)
            assert_true(member_append(random() % 2 != 0 ? &a : &b, number++) != 0);
        member_drive(&a);
        if (random() % 3 == 0)
            member_drive(&b);
    }
    DRIVE_UNTIL(a.n == a.n_tickets + b.n_tickets && b.n == a.n, &a, &b);
    assert_true(members_agree(&a, &b));
    for (uint64_t ticket = 1; ticket <= a.n_tickets; ticket++)
        assert_int_equal(a.fates[ticket], APPLIED);
    for (uint64_t ticket = 1; ticket <= b.n_tickets; ticket++)
        assert_int_equal(b.fates[ticket], APPLIED);
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

static void test_a_read_sees_all_that_was_acknowledged_before(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 0);
    member_begin(&b, &redis, 0);
    for (uint64_t number = 1; number <= 1000; number++) {
        uint64_t ticket = member_append(&a, number);
        DRIVE_UNTIL(member_is_done(&a, ticket), &a);
        member_catch_up(&b);
        assert_true(member_has(&b, number));
        assert_true(b.read_ms >= b.all[b.n - 1].time_ms);
    }
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

static void test_reads_share_one_question(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 0);
    long long before = redis_do(&redis, "EVAL %s 0",
                                "return tonumber(string.match(redis.call('INFO', 'commandstats'), "
                                "'cmdstat_hmget:calls=(%d+)'))");
    for (uint64_t ticket = 1; ticket <= 1000; ticket++)
        assert_int_equal(a.log->ops->catch_up(a.log, ticket, member_read_done, &a), WEIR_OK);
    DRIVE_UNTIL(a.read_ticket == 1000, &a);
    long long after = redis_do(&redis, "EVAL %s 0",
                               "return tonumber(string.match(redis.call('INFO', 'commandstats'), "
                               "'cmdstat_hmget:calls=(%d+)'))");
    assert_in_range(after - before, 1, 4); /* two, and those that look whether Redis is there */
    member_end(&a);
    redis_end(&redis);
}

/* ---- what stays ------------------------------------------------------------------------------*/

static void test_what_was_acknowledged_outlives_redis_being_killed(void **state)
{
    (void)state;
    redis_process redis;
    uint64_t number = 0;
    redis_begin(&redis, "always", NULL);
    member_begin(&a, &redis, 100);
    member_begin(&b, &redis, 100);
    for (int round = 0; round < 5; round++) {
        uint64_t enough = a.n + 40 + (unsigned)round * 37;
        while (a.n < enough) {
            member_append(&a, ++number);
            member_append(&b, ++number);
            member_drive(&a);
            member_drive(&b);
        }
        redis_kill(&redis);
        redis_start(&redis);
        DRIVE_UNTIL(a.log->ops->trouble(a.log) != NULL, &a, &b);
        DRIVE_UNTIL(a.log->ops->trouble(a.log) == NULL && b.log->ops->trouble(b.log) == NULL, &a,
                    &b);
    }
    member_catch_up(&a);
    member_catch_up(&b);
    member_begin(&c, &redis, 100);
    assert_true(members_agree(&a, &b));
    assert_true(members_agree(&a, &c));
    /* a's n-th ticket was for record 2n - 1, b's for 2n */
    for (uint64_t n = 1; n <= number / 2; n++) {
        if (a.fates[n] == APPLIED)
            assert_true(member_has(&c, 2 * n - 1));
        if (b.fates[n] == APPLIED)
            assert_true(member_has(&c, 2 * n));
    }
    member_end(&a);
    member_end(&b);
    member_end(&c);
    redis_end(&redis);
}

static void test_a_directory_that_starts_again_has_the_same(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "always", NULL);
    member_begin(&a, &redis, 64);
    for (uint64_t number = 1; number <= 1000; number++) {
        uint64_t ticket = member_append(&a, number);
        DRIVE_UNTIL(member_is_done(&a, ticket), &a);
    }
    member_begin(&b, &redis, 64);
    assert_int_equal(a.n, 1000);
    assert_true(members_agree(&a, &b));
    member_end(&a);
    member_end(&b);
    redis_kill(&redis); /* and so does one over a Redis that started again */
    redis_start(&redis);
    member_begin(&c, &redis, 64);
    assert_int_equal(c.n, 1000);
    member_end(&c);
    redis_end(&redis);
}

static void test_the_log_is_cut_and_nothing_else_is_left(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 64);
    member_begin(&b, &redis, 64);
    long long longest = 0;
    for (uint64_t number = 1; number <= 2000; number++) {
        uint64_t ticket = member_append(number % 2 != 0 ? &a : &b, number);
        DRIVE_UNTIL(member_is_done(number % 2 != 0 ? &a : &b, ticket), &a, &b);
        if (number % 50 == 0) {
            long long n = redis_do(&redis, "XLEN weir:test:log");
            longest = n > longest ? n : longest;
        }
    }
    assert_in_range(longest, 64, 4 * 64);
    assert_int_equal(a.n_loads, 1); /* who keeps up is not cut off */
    assert_int_equal(b.n_loads, 1);
    DRIVE_UNTIL(redis_do(&redis, "KEYS *") == 3, &a, &b); /* log, head, snapshot */
    assert_int_equal(redis_do(&redis, "TTL weir:test:snapshot"), -1);
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

static void test_a_snapshot_of_many_chunks_comes_back_whole(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 1);
    /* As if it had applied so much before. */
    size_t n_bytes = 2 * WEIR_REDIS_CHUNK + 24;
    applied_record *many = calloc(1, n_bytes);
    for (size_t i = 0; i < n_bytes / sizeof(*many); i++)
        many[i].number = i;
    assert_int_equal(member_load(&a, (const unsigned char *)many, n_bytes / 24 * 24), WEIR_OK);
    free(many);
    assert_true(member_append(&a, 999999999) != 0);
    DRIVE_UNTIL(redis_do(&redis, "EXISTS weir:test:snapshot") == 1, &a);
    assert_int_equal(redis_do(&redis, "HLEN weir:test:snapshot"), 4 + 3);
    member_begin(&b, &redis, 0);
    assert_true(members_agree(&a, &b));
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

/* ---- Redis in trouble ------------------------------------------------------------------------*/

static void test_a_hanging_redis_loses_appends_in_time_and_is_found_again(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "always", NULL);
    weir_redis_log_options options = { .url = redis.url, .name = "test", .timeout_ms = 400 };
    assert_int_equal(member_open(&a, &options), WEIR_OK);
    kill(redis.pid, SIGSTOP);
    uint64_t begun_ns = weir_now_ns();
    uint64_t append = member_append(&a, 1), read = ++a.n_tickets;
    assert_int_equal(a.log->ops->catch_up(a.log, read, member_read_done, &a), WEIR_OK);
    DRIVE_UNTIL(member_is_done(&a, append) && member_is_done(&a, read), &a);
    assert_in_range((weir_now_ns() - begun_ns) / 1000000, 350, 1500);
    assert_int_equal(a.fates[append], LOST);
    assert_int_equal(a.fates[read], LOST);
    assert_non_null(strstr(a.text, "no answer for 0.4 s"));
    assert_non_null(strstr(a.text, redis.url + strlen("redis://")));
    DRIVE_UNTIL(a.log->ops->trouble(a.log) != NULL, &a);
    assert_int_equal(member_append(&a, 2), 0);
    assert_non_null(strstr(weir_last_error(), "no answer for 0.4 s"));
    kill(redis.pid, SIGCONT);
    DRIVE_UNTIL(a.log->ops->trouble(a.log) == NULL, &a);
    uint64_t ticket = member_append(&a, 3);
    DRIVE_UNTIL(member_is_done(&a, ticket), &a);
    assert_int_equal(a.fates[ticket], APPLIED);
    member_begin(&b, &redis, 0);
    assert_true(members_agree(&a, &b));
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

static void test_a_redis_that_is_not_there_is_named(void **state)
{
    (void)state;
    char url[64], expected[128];
    unsigned port = free_port();
    snprintf(url, sizeof(url), "redis://127.0.0.1:%u", port);
    snprintf(expected, sizeof(expected), "redis 127.0.0.1:%u: connection refused, for 0.2 s", port);
    weir_redis_log_options options = { .url = url, .name = "test", .timeout_ms = 200 };
    assert_int_equal(member_open(&a, &options), WEIR_ERR_PEER_LOST);
    assert_string_equal(weir_last_error(), expected);
    member_end(&a);
    options.url = "redis://no-such-host.invalid:6379";
    assert_int_equal(member_open(&a, &options), WEIR_ERR_PEER_LOST);
    assert_non_null(strstr(weir_last_error(), "redis no-such-host.invalid:6379: "));
    member_end(&a);
}

static void test_a_reader_that_was_away_loads_the_snapshot(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 50);
    member_begin(&b, &redis, 50);
    uint64_t caught = member_append(&b, 1000000); /* not sent before b is driven again */
    for (uint64_t number = 1; number <= 600; number++) {
        uint64_t ticket = member_append(&a, number);
        DRIVE_UNTIL(member_is_done(&a, ticket), &a);
    }
    assert_int_equal(b.n_loads, 1);
    DRIVE_UNTIL(member_is_done(&b, caught) && b.n >= 600, &a, &b);
    assert_int_equal(b.n_loads, 2);
    assert_non_null(strstr(log_lines, "is not there any more: its snapshot is loaded"));
    member_catch_up(&b);
    member_catch_up(&a);
    assert_true(members_agree(&a, &b));
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

static void append_some(member *self, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t ticket = member_append(self, first + i);
        assert_true(ticket != 0);
        DRIVE_UNTIL(member_is_done(self, ticket), self);
        assert_int_equal(self->fates[ticket], APPLIED);
    }
}

static void test_a_redis_that_lost_its_records_gets_them_back(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 50);
    append_some(&a, 1, 120);
    redis_do(&redis, "FLUSHALL");
    DRIVE_UNTIL(strstr(log_lines, "was given back to it") != NULL, &a);
    assert_non_null(strstr(log_lines, "it knows 0 records of 120"));
    DRIVE_UNTIL(a.log->ops->trouble(a.log) == NULL, &a);
    append_some(&a, 121, 10);
    assert_int_equal(a.n, 130);
    assert_int_equal(a.n_loads, 1);
    member_begin(&b, &redis, 50);
    assert_true(members_agree(&a, &b));
    /* An append that finds it empty is refused, before any reader could see another history. */
    redis_do(&redis, "FLUSHALL");
    uint64_t ticket = member_append(&a, 131);
    DRIVE_UNTIL(member_is_done(&a, ticket), &a);
    assert_int_equal(a.fates[ticket], LOST);
    DRIVE_UNTIL(a.log->ops->trouble(a.log) == NULL && b.log->ops->trouble(b.log) == NULL, &a, &b);
    member_catch_up(&b);
    member_catch_up(&a);
    assert_true(members_agree(&a, &b));
    assert_int_equal(a.n, 130);
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

static void test_of_two_that_restore_the_one_that_knows_more_wins(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 1000);
    member_begin(&b, &redis, 1000);
    append_some(&a, 1, 20);
    member_catch_up(&b);
    assert_int_equal(b.n, 20);
    append_some(&a, 21, 10); /* b does not see these */
    redis_do(&redis, "FLUSHALL");
    DRIVE_UNTIL(redis_do(&redis, "EXISTS weir:test:snapshot") == 1, &b);
    DRIVE_UNTIL(b.n == 30 && b.log->ops->trouble(b.log) == NULL &&
                    a.log->ops->trouble(a.log) == NULL,
                &a, &b);
    member_catch_up(&a);
    assert_true(members_agree(&a, &b));
    append_some(&b, 31, 5);
    member_catch_up(&a);
    assert_true(members_agree(&a, &b));
    assert_int_equal(a.n, 35);
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

/* ---- what is refused -------------------------------------------------------------------------*/

static void test_a_wrong_password_is_refused_and_not_repeated(void **state)
{
    (void)state;
    redis_process redis;
    char url[160];
    redis_begin(&redis, "always", "right/secret");
    weir_redis_log_options options = { .url = url, .name = "test" };
    snprintf(url, sizeof(url), "redis://:wrong%%20secret@127.0.0.1:%s/1", redis.port);
    assert_int_equal(member_open(&a, &options), WEIR_ERR_REFUSED);
    assert_non_null(strstr(weir_last_error(), "WRONGPASS"));
    assert_null(strstr(weir_last_error(), "secret"));
    member_end(&a);
    snprintf(url, sizeof(url), "redis://127.0.0.1:%s/1", redis.port);
    assert_int_equal(member_open(&a, &options), WEIR_ERR_REFUSED);
    assert_non_null(strstr(weir_last_error(), "NOAUTH"));
    member_end(&a);
    snprintf(url, sizeof(url), "redis://default:right%%2Fsecret@127.0.0.1:%s/1", redis.port);
    assert_int_equal(member_open(&a, &options), WEIR_OK);
    append_some(&a, 1, 1);
    member_end(&a);
    assert_int_equal(redis_do(&redis, "EXISTS weir:test:log"), 0); /* it is in database 1 */
    assert_null(strstr(log_lines, "secret"));
    redis_end(&redis);
}

static void test_a_redis_that_keeps_nothing_is_refused(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, NULL, NULL);
    weir_redis_log_options options = { .url = redis.url, .name = "test" };
    assert_int_equal(member_open(&a, &options), WEIR_ERR_REFUSED);
    assert_non_null(strstr(weir_last_error(), "appendonly no"));
    assert_non_null(strstr(weir_last_error(), "WEIR_REDIS_VOLATILE=1"));
    member_end(&a);
    setenv("WEIR_REDIS_VOLATILE", "1", 1);
    assert_int_equal(member_open(&a, &options), WEIR_OK);
    unsetenv("WEIR_REDIS_VOLATILE");
    member_end(&a);
    redis_end(&redis);
}

static void test_a_redis_that_may_lose_the_last_second_is_warned_of(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 0);
    assert_non_null(strstr(log_lines, "has appendfsync everysec"));
    member_end(&a);
    log_lines[0] = '\0';
    redis_do(&redis, "CONFIG SET appendfsync always");
    member_begin(&a, &redis, 0);
    assert_string_equal(log_lines, "");
    member_end(&a);
    redis_end(&redis);
}

static void test_bad_names_and_urls_are_refused(void **state)
{
    (void)state;
    weir_redis_log_options options = { .url = "redis://127.0.0.1:6379", .name = "a:b" };
    assert_int_equal(member_open(&a, &options), WEIR_ERR_INVALID);
    options.name = "";
    assert_int_equal(member_open(&a, &options), WEIR_ERR_INVALID);
    options = (weir_redis_log_options){ .url = "redis://h:p", .name = "a" };
    assert_int_equal(member_open(&a, &options), WEIR_ERR_INVALID);
    member_end(&a);
}

/* ---- what others write -----------------------------------------------------------------------*/

static void test_records_of_a_newer_weir_are_passed_over(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 0);
    append_some(&a, 1, 1);
    redis_do(&redis, "EVAL %s 2 weir:test:log weir:test:head 0 2 0 0 m s b", weir_redis_append);
    append_some(&a, 2, 1);
    assert_int_equal(a.n, 2);
    assert_non_null(strstr(log_lines, "record 2 is of a newer Weir (format 2): not applied"));
    redis_do(&redis, "XADD weir:test:log * hello world"); /* not of a Weir at all */
    append_some(&a, 3, 1);
    assert_int_equal(a.n, 3);
    assert_non_null(strstr(log_lines, "holds an entry that is not Weir's: passed over"));
    member_begin(&b, &redis, 0);
    assert_true(members_agree(&a, &b));
    member_end(&a);
    member_end(&b);
    redis_end(&redis);
}

static void expect_no_start(const redis_process *redis, weir_status status, const char *text)
{
    weir_redis_log_options options = { .url = redis->url, .name = "test", .timeout_ms = 300 };
    assert_int_equal(member_open(&b, &options), status);
    if (strstr(weir_last_error(), text) == NULL)
        fail_msg("%s", weir_last_error());
    member_end(&b);
}

static void test_a_bad_snapshot_is_refused(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 10);
    append_some(&a, 1, 25);
    DRIVE_UNTIL(redis_do(&redis, "EXISTS weir:test:snapshot") == 1, &a);
    member_end(&a);
    redis_do(&redis, "HSET weir:test:snapshot f 2");
    expect_no_start(&redis, WEIR_ERR_UNSUPPORTED, "of another Weir: format 2, not 1");
    redis_do(&redis, "HSET weir:test:snapshot f 1 0 x");
    expect_no_start(&redis, WEIR_ERR_FORMAT, "the snapshot in Redis is damaged");
    redis_do(&redis, "HSET weir:test:snapshot bytes 99999999999");
    expect_no_start(&redis, WEIR_ERR_FORMAT, "the snapshot in Redis is damaged");
    redis_do(&redis, "DEL weir:test:snapshot"); /* and the log does not begin at its beginning */
    redis_do(&redis, "XTRIM weir:test:log MAXLEN 3");
    expect_no_start(&redis, WEIR_ERR_PEER_LOST, "what follows record 0 is not there any more");
    redis_do(&redis, "SET weir:test:head x");
    expect_no_start(&redis, WEIR_ERR_PEER_LOST, "WRONGTYPE");
    redis_end(&redis);
}

static void test_no_memory_is_an_error(void **state)
{
    (void)state;
    redis_process redis;
    redis_begin(&redis, "everysec", NULL);
    member_begin(&a, &redis, 10);
    append_some(&a, 1, 25);
    DRIVE_UNTIL(redis_do(&redis, "EXISTS weir:test:snapshot") == 1, &a);
    weir_redis_log_options options = { .url = redis.url, .name = "test", .timeout_ms = 1000 };
    weir_status status = WEIR_ERR_NO_MEMORY;
    uint64_t n = 1;
    for (; status != WEIR_OK && n < 20; n++) {
        weir_alloc_fail_at(n);
        status = member_open(&b, &options);
        weir_alloc_fail_at(0);
        if (status == WEIR_OK)
            assert_true(members_agree(&a, &b));
        member_end(&b);
    }
    assert_int_equal(status, WEIR_OK);
    assert_true(n > 2);
    member_end(&a);
    redis_end(&redis);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, begin_lines, end_lines)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_two_directories_apply_the_same_in_one_order),
        CASE(test_a_read_sees_all_that_was_acknowledged_before),
        CASE(test_reads_share_one_question),
        CASE(test_what_was_acknowledged_outlives_redis_being_killed),
        CASE(test_a_directory_that_starts_again_has_the_same),
        CASE(test_the_log_is_cut_and_nothing_else_is_left),
        CASE(test_a_snapshot_of_many_chunks_comes_back_whole),
        CASE(test_a_hanging_redis_loses_appends_in_time_and_is_found_again),
        CASE(test_a_redis_that_is_not_there_is_named),
        CASE(test_a_reader_that_was_away_loads_the_snapshot),
        CASE(test_a_redis_that_lost_its_records_gets_them_back),
        CASE(test_of_two_that_restore_the_one_that_knows_more_wins),
        CASE(test_a_wrong_password_is_refused_and_not_repeated),
        CASE(test_a_redis_that_keeps_nothing_is_refused),
        CASE(test_a_redis_that_may_lose_the_last_second_is_warned_of),
        CASE(test_bad_names_and_urls_are_refused),
        CASE(test_records_of_a_newer_weir_are_passed_over),
        CASE(test_a_bad_snapshot_is_refused),
        CASE(test_no_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
