/* SPDX-License-Identifier: Apache-2.0 */
/* test_redis_url.c - parts of a URL, and errors that give none of them away. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "directory/redis_url.h"

static weir_redis_url url;

static void test_parts_are_found(void **state)
{
    (void)state;
    assert_int_equal(weir_redis_url_parse("redis://10.0.0.1:7000", &url), WEIR_OK);
    assert_string_equal(url.host, "10.0.0.1");
    assert_int_equal(url.port, 7000);
    assert_int_equal(url.database, 0);
    assert_string_equal(url.user, "");
    assert_string_equal(url.password, "");
    assert_string_equal(url.who, "redis 10.0.0.1:7000");
    assert_int_equal(weir_redis_url_parse("redis://u%41:p:%2f@x@[::1]:1/15", &url), WEIR_OK);
    assert_string_equal(url.user, "uA");
    assert_string_equal(url.password, "p:/@x");
    assert_string_equal(url.host, "::1");
    assert_string_equal(url.who, "redis [::1]:1");
    assert_int_equal(url.database, 15);
    assert_int_equal(weir_redis_url_parse("redis://:p@host/", &url), WEIR_OK);
    assert_string_equal(url.user, "");
    assert_string_equal(url.password, "p");
    assert_int_equal(url.port, 6379);
    assert_int_equal(weir_redis_url_parse("redis://[::1]", &url), WEIR_OK);
    assert_string_equal(url.host, "::1");
    weir_redis_url_close(&url);
    assert_string_equal(url.host, "");
}

static void test_bad_parts_are_named_and_not_shown(void **state)
{
    (void)state;
    static const struct {
        const char *url, *part;
    } cases[] = {
        { "rediss://hidden:6379", "redis://" },
        { "", "redis://" },
        { "redis://", "host" },
        { "redis://:6379", "host" },
        { "redis://u:p@:6379", "host" },
        { "redis://[]:6379", "host" },
        { "redis://::1:6379", "host" },
        { "redis://host:hidden", "port" },
        { "redis://host:", "port" },
        { "redis://host:0", "port" },
        { "redis://host:65536", "port" },
        { "redis://host:4294967297", "port" },
        { "redis://u:hid/den@host:6379", "database" },
        { "redis://host:6379/-1", "database" },
        { "redis://host:6379/0/1", "database" },
        { "redis://hidden@host:6379", "user" },
        { "redis://u:@host:6379", "password" },
        { "redis://u:hidden%@host:6379", "password" },
        { "redis://u:hidden%0@host:6379", "password" },
        { "redis://u:hidden%00@host:6379", "password" },
        { "redis://u:hidden%zz@host:6379", "password" },
        { "redis://%:hidden@host:6379", "user" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (weir_redis_url_parse(cases[i].url, &url) != WEIR_ERR_INVALID)
            fail_msg("'%s' was taken", cases[i].url);
        char said[256];
        snprintf(said, sizeof(said), "%.*s", (int)strcspn(weir_last_error(), ";"),
                 weir_last_error());
        if (strstr(said, cases[i].part) == NULL || strstr(said, "hid") != NULL)
            fail_msg("'%s': %s", cases[i].url, weir_last_error());
    }
}

static void test_long_parts_are_refused(void **state)
{
    (void)state;
    static const char *const forms[] = { "redis://%s:p@h:1", "redis://u:%s@h:1", "redis://%s:1" };
    char part[1024], text[1200];
    memset(part, 'n', sizeof(part) - 1);
    part[sizeof(part) - 1] = '\0';
    for (size_t i = 0; i < 3; i++) {
        snprintf(text, sizeof(text), forms[i], part);
        assert_int_equal(weir_redis_url_parse(text, &url), WEIR_ERR_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_are_found),
        cmocka_unit_test(test_bad_parts_are_named_and_not_shown),
        cmocka_unit_test(test_long_parts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
