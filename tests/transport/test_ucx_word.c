/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_word.c - ranks of a broadcast group of transport ucx hear each word in each phase.
 *
 * The other rank is played over plain sockets. A word that none may say then ends the group with an
 * error that names who said it; nothing that is said brings a rank down.
 */
#include "transport/ucx_group_player.h"

#define N_WORDS 1000u

typedef enum stage { JOINING, LINKING, LINKED, JOINED, STAGES } stage;

typedef enum message {
    SAYS_LINKED,
    SAYS_JOINED,
    SAYS_DONE,
    SAYS_LEFT,
    SAYS_BROKEN,
    SAYS_START,
    SAYS_START_OF_ANOTHER,
    SAYS_HELLO,
    SAYS_STEP,
    SAYS_HEAD,
    MESSAGES
} message;

static void say_message(player *one, message what)
{
    static const weir_ucx_head head = { 0, 0, 100, 1 };
    weir_ucx_group_key after = one->key;
    after.nonce[5] ^= what == SAYS_START_OF_ANOTHER;
    switch (what) {
    case SAYS_START:
    case SAYS_START_OF_ANOTHER:
        say_start(one, &after);
        break;
    case SAYS_HELLO:
        say_hello(one, one->words, WEIR_UCX_JOIN);
        break;
    case SAYS_STEP:
        say_step(one, one->words, WEIR_UCX_HERE, 5);
        break;
    case SAYS_HEAD:
        say_head(one, one->words, &head);
        break;
    default:
        say_word(one, (weir_ucx_word_kind)what, 1);
    }
}

/* Until the group has failed, whether it had joined or not. */
static weir_status await_end(weir_group *group)
{
    weir_deadline deadline = weir_deadline_in(WAIT_MS);
    weir_status status;
    while ((status = ops->group_test(group)) >= 0 && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    return status;
}

static void assert_ends(weir_group *group, uint32_t who, weir_status expected)
{
    char text[128];
    if (expected == WEIR_ERR_BUSY)
        snprintf(text, sizeof(text), "round of version 7: no more of this");
    else
        snprintf(text, sizeof(text), "round of version 7: rank %u %s", who,
                 expected == WEIR_ERR_PEER_LOST ? "has left" : "says what none may say then");
    assert_fails(await_end(group), expected, text);
}

/* ---- a rank that hears rank 0 ----------------------------------------------------------------*/

static void bring_rank_one_to(ranks *all, player *root, stage when)
{
    player_give_key(root, all->keys[0]);
    open_rank(all, 0, 1, 2, WAIT_MS);
    player_greet(root);
    if (when >= LINKING)
        say_start(root, &root->key);
    if (when >= LINKED) {
        player_link(root, root->theirs.where.port);
        hear_word(root, WEIR_UCX_LINKED);
    }
    if (when >= JOINED) {
        say_word(root, WEIR_UCX_JOINED, 0);
        assert_went_well(await_rank(all->groups[0][1]));
    }
}

/* How it ends for a rank whose rank 0 says that then. OK: it does not end. */
static weir_status end_of_rank_one(stage when, message what)
{
    if (what == SAYS_BROKEN)
        return WEIR_ERR_BUSY;
    if ((when == JOINING && what == SAYS_START) || (when == LINKED && what == SAYS_JOINED))
        return WEIR_OK;
    return when == JOINED && what == SAYS_LEFT ? WEIR_ERR_PEER_LOST : WEIR_ERR_CORRUPT;
}

static void rank_zero_says(ranks *all, stage when, message what)
{
    weir_status expected = end_of_rank_one(when, what);
    player root = player_open(0, 2);
    bring_rank_one_to(all, &root, when);
    say_message(&root, what);
    weir_group *group = all->groups[0][1];
    if (expected == WEIR_OK && what == SAYS_START) {
        player_link(&root, root.theirs.where.port);
        hear_word(&root, WEIR_UCX_LINKED);
    } else if (expected == WEIR_OK) {
        assert_went_well(await_rank(group));
    } else {
        assert_ends(group, 0, expected);
    }
    close_rank(all, 0, 1, true);
    player_close(&root);
}

static void rank_zero_says_each_word_in_each_phase(void **state)
{
    for (stage when = JOINING; when < STAGES; when++) {
        for (message what = 0; what < MESSAGES; what++)
            rank_zero_says(*state, when, what);
    }
}

/* ---- rank 0 that hears a rank ----------------------------------------------------------------*/

/* JOINING: a third rank is missing. LINKED: rank 0 is, and hears the same of the others. */
static void bring_rank_zero_to(ranks *all, player *one, stage when)
{
    weir_ucx_start start;
    assert_went_well(ops->group_key(all->transports[0], all->keys[0]));
    one->n_ranks = when == JOINING ? 3 : 2;
    open_rank(all, 0, 0, one->n_ranks, WAIT_MS);
    player_join(one, all->keys[0]);
    if (when == JOINING)
        return;
    hear_start(one, &start);
    assert_memory_equal(start.after.nonce, one->key.nonce, sizeof(one->key.nonce));
    if (when >= LINKED)
        player_link(one, start.after.port);
    if (when >= JOINED) {
        say_word(one, WEIR_UCX_LINKED, 0);
        hear_word(one, WEIR_UCX_JOINED);
        assert_went_well(await_rank(all->groups[0][0]));
    }
}

static weir_status end_of_rank_zero(stage when, message what)
{
    if (what == SAYS_BROKEN)
        return WEIR_ERR_BUSY;
    if ((when == LINKING || when == LINKED) && what == SAYS_LINKED)
        return WEIR_OK;
    if (when == JOINED && what == SAYS_DONE)
        return WEIR_OK;
    return when == JOINED && what == SAYS_LEFT ? WEIR_ERR_PEER_LOST : WEIR_ERR_CORRUPT;
}

static void rank_one_says(ranks *all, stage when, message what)
{
    weir_status expected = end_of_rank_zero(when, what);
    player one = player_open(1, 2);
    bring_rank_zero_to(all, &one, when);
    say_message(&one, what);
    if (expected == WEIR_OK) /* but nobody says it twice */
        say_message(&one, what);
    assert_ends(all->groups[0][0], 1, expected == WEIR_OK ? WEIR_ERR_CORRUPT : expected);
    player_close(&one); /* rank 0 waits for it to hear how it ended */
    close_rank(all, 0, 0, true);
}

static void a_rank_says_each_word_in_each_phase(void **state)
{
    for (stage when = JOINING; when < STAGES; when++) {
        for (message what = 0; what < MESSAGES; what++)
            rank_one_says(*state, when, what);
    }
}

/* All that was said is heard, however much of it comes at once. */
static void many_words_at_once_are_all_heard(void **state)
{
    ranks *all = *state;
    player one = player_open(1, 2);
    bring_rank_zero_to(all, &one, JOINED);
    weir_key_buffer many = { 0 };
    for (uint64_t n = 1; n <= N_WORDS; n++) {
        weir_ucx_word word = { .kind = n < N_WORDS ? WEIR_UCX_DONE : WEIR_UCX_LEFT, .n_done = n };
        assert_went_well(weir_ucx_word_encode(&word, &one.out));
        many.data = realloc(many.data, many.n_bytes + one.out.n_bytes);
        memcpy(many.data + many.n_bytes, one.out.data, one.out.n_bytes);
        many.n_bytes += one.out.n_bytes;
    }
    say(one.words, many.data, many.n_bytes);
    assert_ends(all->groups[0][0], 1, WEIR_ERR_PEER_LOST);
    free(many.data);
    player_close(&one); /* rank 0 waits for it to hear how it ended */
    close_rank(all, 0, 0, true);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE(rank_zero_says_each_word_in_each_phase, any_way),
        CASE(a_rank_says_each_word_in_each_phase, any_way),
        CASE(many_words_at_once_are_all_heard, any_way),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
