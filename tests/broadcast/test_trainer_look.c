/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "broadcast/trainer_look.h"
#include "directory/client.h"
#include "weir/weir.h"

static const weir_trainer_wish wish = {
    .model = "m", .run = "run", .holds = true, .held = 6, .held_uid = "six"
};

static weir_trainer_sight see(const char *json)
{
    weir_trainer_sight sight;
    assert_int_equal(weir_trainer_sight_read(json, &wish, &sight), WEIR_OK);
    assert_true(sight.is_told);
    return sight;
}

static void a_registered_trainer_or_one_that_has_published_is_there(void **state)
{
    (void)state;
    assert_true(see("{\"workers\":[{\"model\":\"m\",\"role\":\"trainer\"}]}").has_trainer);
    assert_true(see("{\"groups\":[{\"model\":\"m\",\"role\":\"trainer\",\"status\":\"READY\"}]}")
                    .has_trainer);
    static const char *const none[] = {
        "{}",
        "{\"workers\":7,\"groups\":{},\"versions\":null}",
        "{\"workers\":[7,null,{\"role\":\"trainer\"}]}",
        "{\"workers\":[{\"model\":\"m\",\"role\":\"inference_replica\"}]}",
        "{\"workers\":[{\"model\":\"m\",\"role\":\"trainer\",\"superseded\":true}]}",
        "{\"groups\":[{\"model\":\"m\",\"role\":\"trainer\",\"status\":\"STALE\"}]}",
    };
    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++)
        assert_false(see(none[i]).has_trainer);
}

static void trainers_of_other_models_are_named_once(void **state)
{
    (void)state;
    weir_trainer_sight sight = see("{\"workers\":[{\"model\":\"a\",\"role\":\"trainer\"},"
                                   "{\"model\":\"b\",\"role\":\"trainer\"},"
                                   "{\"model\":\"a\",\"role\":\"trainer\"},"
                                   "{\"model\":\"c\",\"role\":\"inference_replica\"}]}");
    assert_false(sight.has_trainer);
    assert_string_equal(sight.others, "a, b");
}

static void a_trainer_of_the_directory_is_there_before_it_has_registered(void **state)
{
    (void)state;
    weir_trainer_sight sight =
        see("{\"trainer\":{\"model\":\"m\",\"run\":\"other\",\"inference_workers\":4}}");
    assert_true(sight.has_trainer);
    assert_true(sight.says_run);
    assert_string_equal(sight.run, "other");
    assert_int_equal(sight.n_workers, 4);
    sight = see("{\"trainer\":{\"model\":\"b\",\"run\":\"run\",\"inference_workers\":4}}");
    assert_false(sight.has_trainer);
    assert_false(sight.says_run);
    assert_string_equal(sight.others, "b");
    static const char *const none[] = { "{\"trainer\":7}", "{\"trainer\":null}",
                                        "{\"trainer\":{\"model\":\"m\",\"run\":7,"
                                        "\"inference_workers\":-1}}",
                                        "{\"trainer\":{\"model\":\"m\","
                                        "\"inference_workers\":9999999999}}" };
    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++)
        assert_int_equal(see(none[i]).n_workers, 0);
}

static void the_newest_is_ready_and_of_the_run(void **state)
{
    (void)state;
#define VERSION(number, run, state, more) \
    "{\"model\":\"m\",\"run\":\"" run "\",\"version\":" number ",\"state\":\"" state "\"" more "}"
    weir_trainer_sight sight =
        see("{\"revision\":12,\"versions\":[" VERSION("9", "run", "STAGING", "") "," VERSION(
            "8", "other", "READY",
            "") "," VERSION("7", "run", "READY",
                            ",\"taken_back\":true") "," VERSION("5", "run", "READY",
                                                                "") "," VERSION("6", "run", "READY",
                                                                                "") "," VERSION("\""
                                                                                                "7"
                                                                                                "\"",
                                                                                                "ru"
                                                                                                "n",
                                                                                                "RE"
                                                                                                "AD"
                                                                                                "Y",
                                                                                                "") "]}");
    assert_true(sight.has_newest);
    assert_int_equal(sight.newest, 6);
    assert_int_equal(sight.revision, 12);
    assert_false(see("{}").has_newest);
}

static void a_version_that_is_held_may_be_made_anew(void **state)
{
    (void)state;
#define SIX(uid, state) "{\"versions\":[" VERSION("6", "run", state, ",\"uid\":\"" uid "\"") "]}"
    assert_false(see(SIX("six", "READY")).is_made_anew);
    assert_false(see(SIX("other", "ABORTED")).is_made_anew);
    assert_false(see(SIX("other", "RELEASING")).is_made_anew);
    assert_true(see(SIX("other", "READY")).is_made_anew);
    assert_true(see(SIX("other", "STAGING")).is_made_anew);
    assert_false(see("{}").is_made_anew); /* so old that nobody lists it */
    weir_trainer_wish other = wish;
    weir_trainer_sight sight;
    other.holds = false;
    assert_int_equal(weir_trainer_sight_read(SIX("other", "READY"), &other, &sight), WEIR_OK);
    assert_false(sight.is_made_anew);
}

static void a_version_that_is_wanted_may_have_been_aborted(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool is_aborted;
    } cases[] = { { SIX("six", "ABORTED"), true },
                  { SIX("six", "READY"), false },
                  { SIX("six", "RELEASING"), false },
                  { "{\"versions\":[" VERSION("5", "run", "ABORTED", "") "]}", false },
                  { "{\"versions\":[" VERSION("6", "other", "ABORTED", "") "]}", false },
                  { "{\"versions\":[" VERSION("6", "run", "STAGING",
                                              "") "," VERSION("6", "run", "ABORTED", "") "]}",
                    false },
                  { "{}", false } };
    weir_trainer_wish six = wish;
    weir_trainer_sight sight;
    six.wants = true;
    six.wanted = 6;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(weir_trainer_sight_read(cases[i].text, &six, &sight), WEIR_OK);
        assert_int_equal(sight.is_aborted, cases[i].is_aborted);
        assert_false(see(cases[i].text).is_aborted); /* of whom no version is wanted */
    }
}

static void what_is_no_object_is_refused(void **state)
{
    (void)state;
    weir_trainer_sight sight;
    static const char *const bad[] = { "", "[]", "7", "{", "\"fleet\"" };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(weir_trainer_sight_read(bad[i], &wish, &sight), WEIR_ERR_FORMAT);
}

static void a_directory_is_looked_at(void **state)
{
    (void)state;
    weir_directory *directory;
    weir_directory_client *client;
    weir_trainer_sight sight;
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_int_equal(weir_directory_open(&options, &directory), WEIR_OK);
    assert_int_equal(weir_directory_client_open(weir_directory_address(directory), 5000, &client),
                     WEIR_OK);
    assert_int_equal(weir_trainer_look(client, "m", "run", 0, 0, &sight), WEIR_OK);
    assert_true(sight.is_told);
    assert_false(sight.has_trainer);
    assert_int_equal(
        weir_directory_register_worker(client, "trainer-0", WEIR_ROLE_TRAINER, "m", 60), WEIR_OK);
    assert_int_equal(weir_trainer_look(client, "m", "run", 0, 0, &sight), WEIR_OK);
    assert_true(sight.has_trainer);
    weir_directory_client_close(client);
    weir_directory_close(directory);
}

static void a_directory_says_whose_it_is(void **state)
{
    (void)state;
    weir_directory *directory;
    weir_directory_client *client;
    weir_trainer_sight sight;
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    options.trainer_model = "m";
    options.n_inference_workers = 4;
    assert_int_equal(weir_directory_open(&options, &directory), WEIR_OK);
    assert_int_equal(weir_directory_client_open(weir_directory_address(directory), 5000, &client),
                     WEIR_OK);
    assert_int_equal(weir_trainer_look(client, "m", "run", 0, 0, &sight), WEIR_OK);
    assert_true(sight.has_trainer);
    assert_string_equal(sight.run, "default");
    assert_int_equal(sight.n_workers, 4);
    weir_directory_client_close(client);
    weir_directory_close(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_registered_trainer_or_one_that_has_published_is_there),
        cmocka_unit_test(trainers_of_other_models_are_named_once),
        cmocka_unit_test(a_trainer_of_the_directory_is_there_before_it_has_registered),
        cmocka_unit_test(a_directory_says_whose_it_is),
        cmocka_unit_test(the_newest_is_ready_and_of_the_run),
        cmocka_unit_test(a_version_that_is_held_may_be_made_anew),
        cmocka_unit_test(a_version_that_is_wanted_may_have_been_aborted),
        cmocka_unit_test(what_is_no_object_is_refused),
        cmocka_unit_test(a_directory_is_looked_at),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
