/* SPDX-License-Identifier: Apache-2.0 */
/* test_registries.c - texts that ranks exchange, what one that lies is told, and what texts must
 * not say. */
#include "refit/registries.h"

#include <pthread.h>
#include <semaphore.h>

#include "base/alloc.h"
#include "refit/holders.h"
#include "refit/refit_rig.h"

#define N_RANKS 3
#define SHORT_MS 400

typedef struct exchange_rank {
    weir_trainer *trainer;
    const char *text;
    weir_status status;
    char line[WEIR_ERROR_TEXT];
} exchange_rank;

typedef struct exchange_case {
    weir_directory *directory;
    exchange_rank ranks[N_RANKS];
} exchange_case;

static void open_rank(exchange_case *c, uint32_t rank)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.directory = weir_directory_address(c->directory);
    options.model = "model";
    options.rank = rank;
    options.n_ranks = N_RANKS;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.mesh = WEIR_MESH_EXPLICIT;
    assert_ok(weir_trainer_open(&options, &c->ranks[rank].trainer));
}

static exchange_case *open_case(void)
{
    exchange_case *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_ok(weir_directory_open(&options, &c->directory));
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        open_rank(c, rank);
    return c;
}

static void close_case(exchange_case *c)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        weir_trainer_close(c->ranks[rank].trainer);
    weir_directory_close(c->directory);
    free(c);
}

static void *exchange_one(void *context)
{
    exchange_rank *rank = context;
    rank->status =
        weir_registries_exchange(rank->trainer->registries, rank->text, strlen(rank->text));
    snprintf(rank->line, sizeof(rank->line), "%s", weir_last_error());
    return NULL;
}

static void exchange(exchange_case *c, const char *const texts[N_RANKS])
{
    pthread_t threads[N_RANKS];
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        c->ranks[rank].text = texts[rank];
        assert_int_equal(pthread_create(&threads[rank], NULL, exchange_one, &c->ranks[rank]), 0);
    }
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        pthread_join(threads[rank], NULL);
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        if (c->ranks[rank].status != WEIR_OK)
            fail_msg("rank %u: %s", rank, c->ranks[rank].line);
    }
}

static void expect_texts(exchange_case *c, const char *const texts[N_RANKS])
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        for (uint32_t of = 0; of < N_RANKS; of++) {
            weir_registry_text got = weir_registries_of(c->ranks[rank].trainer->registries, of);
            assert_int_equal(got.n_bytes, strlen(texts[of]));
            assert_memory_equal(got.text, texts[of], got.n_bytes);
            assert_string_equal(got.worker, c->ranks[of].trainer->worker.id);
        }
    }
}

/* ---- exchanges -------------------------------------------------------------------------------*/

static const char *const first[N_RANKS] = { "a", "b", "c" };
static const char *const second[N_RANKS] = { "d", "e", "f" };

static void every_rank_gets_the_text_of_every_other(void **state)
{
    (void)state;
    exchange_case *c = open_case();
    exchange(c, first);
    expect_texts(c, first);
    exchange(c, second);
    expect_texts(c, second);
    close_case(c);
}

/* Ranks that are through may be in the next exchange before others have seen it. */
static void exchanges_that_follow_each_other_do_not_mix(void **state)
{
    (void)state;
    exchange_case *c = open_case();
    for (int i = 0; i < 10; i++) {
        exchange(c, i % 2 ? first : second);
        expect_texts(c, i % 2 ? first : second);
    }
    close_case(c);
}

typedef struct run {
    exchange_rank *rank;
    uint32_t number;
} run;

static void *exchange_twice(void *context)
{
    run *r = context;
    r->rank->text = first[r->number];
    exchange_one(r->rank);
    if (r->rank->status != WEIR_OK)
        return NULL;
    r->rank->text = second[r->number];
    return exchange_one(r->rank);
}

static void nobody_waits_for_a_rank_that_has_gone_on(void **state)
{
    (void)state;
    exchange_case *c = open_case();
    pthread_t threads[N_RANKS];
    run runs[N_RANKS];
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        runs[rank] = (run){ &c->ranks[rank], rank };
        assert_int_equal(pthread_create(&threads[rank], NULL, exchange_twice, &runs[rank]), 0);
    }
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        pthread_join(threads[rank], NULL);
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        if (c->ranks[rank].status != WEIR_OK)
            fail_msg("rank %u: %s", rank, c->ranks[rank].line);
    }
    expect_texts(c, second);
    close_case(c);
}

static void what_was_taken_back_is_not_gone_by(void **state)
{
    (void)state;
    exchange_case *c = open_case();
    exchange(c, first);
    for (uint32_t rank = 1; rank < N_RANKS; rank++)
        weir_registries_withdraw(c->ranks[rank].trainer->registries);
    c->ranks[0].trainer->worker.timeout_ms = SHORT_MS;
    exchange_one(&c->ranks[0]);
    assert_int_equal(c->ranks[0].status, WEIR_ERR_TIMED_OUT);
    assert_non_null(strstr(c->ranks[0].line, "from rank 1: it has announced itself but not "
                                             "registered; rank 2 is missing too"));
    c->ranks[0].trainer->worker.timeout_ms = RIG_TIMEOUT_MS;
    exchange(c, first);
    expect_texts(c, first);
    close_case(c);
}

static void a_wait_can_be_cancelled(void **state)
{
    (void)state;
    exchange_case *c = open_case();
    c->ranks[0].text = "a";
    weir_trainer_cancel(c->ranks[0].trainer);
    exchange_one(&c->ranks[0]);
    assert_int_equal(c->ranks[0].status, WEIR_ERR_CANCELLED);
    exchange(c, first);
    close_case(c);
}

/* ---- a rank that lies ------------------------------------------------------------------------*/

typedef struct liar {
    weir_manifest_service *service;
    const char *head, *text;
    char head_digest[WEIR_SHA256_HEX], text_digest[WEIR_SHA256_HEX];
    bool told_text;
    sem_t asked_again; /* by who has its text */
} liar;

static bool lie(void *context, const weir_manifest_request *request, weir_manifest_found *out)
{
    liar *l = context;
    bool is_head = strcmp(request->version_uid, "registry") == 0;
    if (is_head && l->told_text)
        sem_post(&l->asked_again);
    l->told_text = !is_head || l->told_text;
    *out = is_head ? (weir_manifest_found){ l->head, strlen(l->head), l->head_digest }
                   : (weir_manifest_found){ l->text, strlen(l->text), l->text_digest };
    return true;
}

static void lied(void *context)
{
    (void)context;
}

/* Instead of a rank of the case, which is closed. */
static void open_liar(exchange_case *c, uint32_t rank, liar *l)
{
    char id[WEIR_ID_BYTES];
    weir_worker *worker = &c->ranks[rank].trainer->worker;
    assert_int_equal(sem_init(&l->asked_again, 0, 0), 0);
    assert_ok(weir_sha256_hex(l->head, strlen(l->head), l->head_digest));
    assert_ok(weir_sha256_hex(l->text, strlen(l->text), l->text_digest));
    weir_manifest_source source = { lie, lied, l };
    assert_ok(weir_manifest_service_open("127.0.0.1", &source, NULL, &l->service));
    weir_source_record record =
        weir_worker_entry(worker, 0, "", weir_manifest_service_address(l->service));
    record.status = WEIR_SOURCE_INITIALIZING;
    record.rank = rank;
    record.n_ranks = N_RANKS;
    snprintf(record.worker_id, sizeof(record.worker_id), "trainer-%u-liar", rank);
    assert_ok(weir_directory_publish_source(worker->client, &record, id));
    weir_trainer_close(c->ranks[rank].trainer);
    c->ranks[rank].trainer = NULL;
}

static void close_liar(liar *l)
{
    weir_manifest_service_close(l->service);
    sem_destroy(&l->asked_again);
}

static void check_lie(const char *head, const char *text, weir_status status, const char *line)
{
    exchange_case *c = open_case();
    liar l = { .head = head, .text = text };
    open_liar(c, 1, &l);
    c->ranks[0].text = "a";
    exchange_one(&c->ranks[0]);
    if (c->ranks[0].status != status || strstr(c->ranks[0].line, line) == NULL)
        fail_msg("got %s: '%s', wanted '%s'", weir_status_name(c->ranks[0].status),
                 c->ranks[0].line, line);
    close_liar(&l);
    close_case(c);
}

#define DIGEST "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define HEAD(format, rank, n_ranks, registry)                                        \
    "{\"format\":" format ",\"rank\":" rank ",\"n_ranks\":" n_ranks ",\"registry\":" \
    "\"" registry "\",\"all\":\"\",\"before\":\"\"}"

static void heads_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    const char *who = "trainer rank 1 (worker trainer-1-liar)";
    check_lie("no head", "", WEIR_ERR_CORRUPT, who);
    check_lie("{\"format\":1}", "", WEIR_ERR_CORRUPT, "the head of its registry does not decode");
    check_lie(HEAD("1", "1", "3", "../../etc"), "", WEIR_ERR_CORRUPT, "does not decode");
    check_lie(HEAD("2", "1", "3", DIGEST), "", WEIR_ERR_UNSUPPORTED, "of format 2, not 1");
    check_lie(HEAD("1", "0", "3", DIGEST), "", WEIR_ERR_LAYOUT,
              "says that it is trainer rank 0 of 3, not 1 of 3");
    check_lie(HEAD("1", "1", "4", DIGEST), "", WEIR_ERR_LAYOUT,
              "says that it is trainer rank 1 of 4, not 1 of 3");
    check_lie(HEAD("1", "1", "3", DIGEST), "another", WEIR_ERR_CORRUPT, "its registry has digest ");
}

/* It has heard of all, says so, and is closed before others have heard of all: as a rank that found
 * what it was told wrong, and left. */
static void a_rank_that_left_has_said_what_it_had_to(void **state)
{
    (void)state;
    char digests[N_RANKS][WEIR_SHA256_HEX], all[WEIR_SHA256_HEX], heads[N_RANKS][512];
    liar liars[N_RANKS] = { 0 };
    pthread_t thread;
    exchange_case *c = open_case();
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        assert_ok(weir_sha256_hex(first[rank], strlen(first[rank]), digests[rank]));
    assert_ok(weir_sha256_hex(digests, sizeof(digests), all));
    for (uint32_t rank = 1; rank < N_RANKS; rank++) {
        snprintf(heads[rank], sizeof(heads[rank]),
                 "{\"format\":1,\"rank\":%u,\"n_ranks\":%d,\"registry\":\"%s\",\"all\":\"%s\","
                 "\"before\":\"\"}",
                 rank, N_RANKS, digests[rank], all);
        liars[rank].head = heads[rank];
        liars[rank].text = first[rank];
    }
    open_liar(c, 1, &liars[1]);
    c->ranks[0].text = first[0];
    assert_int_equal(pthread_create(&thread, NULL, exchange_one, &c->ranks[0]), 0);
    assert_int_equal(sem_wait(&liars[1].asked_again), 0);
    close_liar(&liars[1]);
    open_liar(c, 2, &liars[2]);
    pthread_join(thread, NULL);
    if (c->ranks[0].status != WEIR_OK)
        fail_msg("%s", c->ranks[0].line);
    close_liar(&liars[2]);
    close_case(c);
}

/* ---- texts -----------------------------------------------------------------------------------*/

#define DOCUMENT(tensors) \
    "{\"version\":0,\"trainer_world_layout\":\"fsdp:1\",\"tensors\":[" tensors "]}"
#define TENSOR(name, rest) \
    "{\"name\":\"" name "\",\"global_shape\":[8,4],\"dtype\":\"bfloat16\"" rest "}"

/* As after a plan that could not be made, so that ranks may come with the same text. */
static weir_status read_texts(exchange_case *c, const char *text, weir_holders **out)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        weir_registries_withdraw(c->ranks[rank].trainer->registries);
    const char *const texts[N_RANKS] = { DOCUMENT(TENSOR("a", "")), text, DOCUMENT("") };
    exchange(c, texts);
    return weir_holders_open(c->ranks[0].trainer->registries, N_RANKS, out);
}

static void texts_that_are_none_are_refused_with_their_rank(void **state)
{
    (void)state;
    weir_holders *holders = NULL;
    exchange_case *c = open_case();
    const char *who = "rank 1 (worker trainer-1-";
    assert_error(read_texts(c, "", &holders), WEIR_ERR_FORMAT, who);
    assert_error(read_texts(c, "{}", &holders), WEIR_ERR_FORMAT, who);
    assert_error(read_texts(c, DOCUMENT("") "\n", &holders), WEIR_ERR_FORMAT, who);
    assert_error(read_texts(c, DOCUMENT(TENSOR("a", ",\"placement_kind\":\"SHARD\"")), &holders),
                 WEIR_ERR_INVALID, "SHARD without a local_shard_range");
    assert_error(read_texts(c, DOCUMENT("{\"name\":\"z\",\"global_shape\":[1],\"dtype\":\"odd\"}"),
                            &holders),
                 WEIR_ERR_LAYOUT, "holds it as dtype odd, which there is not");
    assert_null(holders);
    close_case(c);
}

static void a_tensor_is_listed_once(void **state)
{
    (void)state;
    weir_holders *holders;
    size_t n;
    exchange_case *c = open_case();
    assert_ok(read_texts(
        c, DOCUMENT(TENSOR("a", "") "," TENSOR("b", "")) "\n" DOCUMENT(TENSOR("b", "")), &holders));
    const weir_tensor_shard *tensors = weir_holders_tensors(holders, &n);
    assert_int_equal(n, 2);
    assert_string_equal(tensors[0].local.name, "a");
    assert_string_equal(tensors[1].local.name, "b");
    assert_int_equal(tensors[1].local.dtype, WEIR_BF16);
    weir_holders_close(holders);
    close_case(c);
}

static void every_box_of_a_tensor_is_on_a_line_of_its_own(void **state)
{
    (void)state;
    static uint16_t data[32];
    weir_tensor_shard shards[] = {
        { { "a", WEIR_BF16, { 2, { 2, 4 } }, data }, { 2, { 8, 4 } }, { 2, { 0, 0 }, { 2, 4 } } },
        { { "b", WEIR_F32, { 1, { 3 } }, data }, { 1, { 3 } }, { 1, { 0 }, { 3 } } },
        { { "a", WEIR_BF16, { 2, { 1, 2 } }, data }, { 2, { 8, 4 } }, { 2, { 7, 1 }, { 8, 3 } } },
        { { "c", WEIR_BF16, { 1, { 0 } }, NULL }, { 1, { 3 } }, { 1, { 2 }, { 2 } } },
    };
    char *text;
    size_t n_bytes;
    weir_tensor_registry *registry;
    assert_ok(weir_holders_describe(shards, 4, &text, &n_bytes));
    assert_int_equal(n_bytes, strlen(text));
    char *line = strchr(text, '\n');
    assert_non_null(line);
    assert_null(strchr(line + 1, '\n'));
    assert_ok(weir_tensor_registry_decode(text, (size_t)(line - text), &registry));
    assert_int_equal(registry->n_tensors, 2);
    assert_int_equal(registry->tensors[0].range_hi, 2);
    assert_int_equal(registry->tensors[1].placement, WEIR_PLACEMENT_REPLICATE);
    weir_tensor_registry_close(registry);
    assert_ok(weir_tensor_registry_decode(line + 1, strlen(line + 1), &registry));
    assert_int_equal(registry->n_tensors, 1);
    assert_int_equal(registry->tensors[0].placement, WEIR_PLACEMENT_BOX);
    assert_int_equal(registry->tensors[0].box.lo[1], 1);
    weir_tensor_registry_close(registry);
    weir_free(text);
    assert_ok(weir_holders_describe(shards, 0, &text, &n_bytes));
    assert_ok(weir_tensor_registry_decode(text, n_bytes, &registry));
    assert_int_equal(registry->n_tensors, 0);
    weir_tensor_registry_close(registry);
    weir_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rank_gets_the_text_of_every_other),
        cmocka_unit_test(exchanges_that_follow_each_other_do_not_mix),
        cmocka_unit_test(nobody_waits_for_a_rank_that_has_gone_on),
        cmocka_unit_test(what_was_taken_back_is_not_gone_by),
        cmocka_unit_test(a_wait_can_be_cancelled),
        cmocka_unit_test(heads_that_make_no_sense_are_refused),
        cmocka_unit_test(a_rank_that_left_has_said_what_it_had_to),
        cmocka_unit_test(texts_that_are_none_are_refused_with_their_rank),
        cmocka_unit_test(a_tensor_is_listed_once),
        cmocka_unit_test(every_box_of_a_tensor_is_on_a_line_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
