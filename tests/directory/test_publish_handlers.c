/* SPDX-License-Identifier: Apache-2.0 */
/* test_publish_handlers.c - a rank that is started anew, as its messages tell: `content` of what is
 * published, `held_id` of what is wished for. */
#include "directory/fleet_case.h"

static const Weir__Directory__PublishVersionShardResponse *
publish_content(fixture *f, const char *worker_id, const char *slot, const char *content)
{
    static publish_case c; /* the answer may point into the request */
    publish_request(&c, worker_id, slot, 5);
    c.request.content = (char *)content;
    return answered(f, &c.request.base);
}

static void test_the_same_content_goes_on_and_another_begins_the_next_attempt(void **state)
{
    fixture *f = *state;
    char first[16];
    register_all(f);
    register_worker(f, "anew-0", 1);
    publish_content(f, "trainer-0", "a", "a of step 5");
    snprintf(first, sizeof(first), "%s",
             publish_content(f, "trainer-1", "b", "b of step 5")->version->uid);
    const Weir__Directory__PublishVersionShardResponse *response =
        publish_content(f, "anew-0", "a", "a of step 5");
    assert_string_equal(response->version->uid, first);
    assert_int_equal(response->attempt, 1);
    register_worker(f, "again-0", 1);
    response = publish_content(f, "again-0", "a", "another a");
    assert_int_equal(response->attempt, 2);
    assert_int_equal(response->version->state, WEIR_STORE_STAGING);
    const weir_store_version *version = NULL;
    assert_int_equal(weir_store_get_version(f->core.store, first, &version), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_ABORTED);
    assert_string_equal(version->reason,
                        "a was started anew as again-0, with other weights than those of anew-0");
}

static void test_a_content_has_a_bound(void **state)
{
    fixture *f = *state;
    publish_case c;
    char content[257];
    memset(content, 'x', sizeof(content));
    content[256] = '\0';
    register_all(f);
    publish_request(&c, "trainer-0", "a", 5);
    c.request.content = content;
    refused(f, &c.request.base, WEIR_RPC_INVALID_ARGUMENT,
            "trace_id, layout_signature, content or a text of the shard is too long");
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 1000);
    request.held_id = content;
    refused(f, &request.base, WEIR_RPC_INVALID_ARGUMENT,
            "but_not_id, held_id, host, part or trace_id is too long");
}

static void test_who_holds_an_attempt_waits_for_the_next_one(void **state)
{
    fixture *f = *state;
    char held[16], uid[16];
    register_all(f);
    publish_content(f, "trainer-0", "a", "a");
    snprintf(held, sizeof(held), "%s", publish_content(f, "trainer-1", "b", "b")->version->uid);
    register_worker(f, "anew-0", 1);
    register_worker(f, "anew-1", 1);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 1000);
    request.held_id = held;
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    publish_content(f, "anew-0", "a", "new a");
    assert_null(find_later(f, ticket));
    snprintf(uid, sizeof(uid), "%s", publish_content(f, "anew-1", "b", "new b")->version->uid);
    weir_directory_core_tick(&f->core);
    const Weir__Directory__AcquireVersionResponse *response = later(f, ticket);
    assert_true(response->found);
    assert_string_equal(response->version->uid, uid);
    assert_int_equal(response->attempt, 2);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_the_same_content_goes_on_and_another_begins_the_next_attempt),
        CASE(test_a_content_has_a_bound),
        CASE(test_who_holds_an_attempt_waits_for_the_next_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
