/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_abuse.c - what one hostile peer can do to the others: while it does its worst, a
 * well-behaved client's calls stay fast, and it is the hostile one that loses its connection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>

#include "rpc/attacker.h"
#include "rpc/echo_service.h"
#include "weir/weir.h"

#define TIMEOUT_MS 10000
#define ATTACK_MS 150
#define MAX_LATENCIES 200000u
/* Shared machines and sanitizers are slow; what the figures are without them is printed. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define MAX_P99_MS 1000.0
#else
#define MAX_P99_MS 200.0
#define MEASURES_MEMORY 1
#endif

/* ---- the server, and a client that means well ------------------------------------------------*/

typedef struct victim {
    weir_rpc_server *server;
    pthread_mutex_t lock;
    weir_rpc_counts counts; /* a millisecond old */
    pthread_t thread;
    _Atomic bool is_stopping;
    _Atomic unsigned n_latencies;
    unsigned n_failures;
    float *latency_ms;
} victim;

static weir_status keep_server(void *context, weir_rpc_server *server)
{
    ((victim *)context)->server = server;
    return WEIR_OK;
}

static unsigned keep_counts(void *context)
{
    victim *who = context;
    pthread_mutex_lock(&who->lock);
    who->counts = weir_rpc_server_counts(who->server);
    pthread_mutex_unlock(&who->lock);
    return 1;
}

static weir_rpc_counts counts_of(victim *who)
{
    pthread_mutex_lock(&who->lock);
    weir_rpc_counts counts = who->counts;
    pthread_mutex_unlock(&who->lock);
    return counts;
}

/* Calls without a pause, on one connection. */
static void *call_on(void *context)
{
    victim *who = context;
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    if (weir_rpc_client_open(weir_rpc_server_address(who->server), NULL, NULL, &client) != WEIR_OK)
        return NULL;
    while (!who->is_stopping && who->n_latencies < MAX_LATENCIES) {
        uint64_t begin_ns = weir_now_ns();
        if (echo_call(client, "uid", TIMEOUT_MS, &arena, NULL) != WEIR_OK)
            who->n_failures++;
        who->latency_ms[who->n_latencies] = (float)(weir_now_ns() - begin_ns) / 1e6f;
        who->n_latencies++;
    }
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    return NULL;
}

static victim *open_victim(const weir_rpc_limits *limits)
{
    victim *who = calloc(1, sizeof(*who));
    weir_rpc_service service = ECHO_SERVICE;
    weir_rpc_server_options options = { .listen = "127.0.0.1:0",
                                        .services = &service,
                                        .n_services = 1,
                                        .tick = keep_counts,
                                        .tick_context = who,
                                        .begin = keep_server,
                                        .begin_context = who };
    if (limits != NULL)
        options.limits = *limits;
    assert_non_null(who);
    who->latency_ms = malloc(MAX_LATENCIES * sizeof(who->latency_ms[0]));
    assert_non_null(who->latency_ms);
    pthread_mutex_init(&who->lock, NULL);
    weir_rpc_server *server;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    assert_int_equal(pthread_create(&who->thread, NULL, call_on, who), 0);
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (who->n_latencies < 50 && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    return who;
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Its calls were answered, and soon. */
static void close_victim(victim *who, const char *attack)
{
    weir_rpc_counts counts = counts_of(who);
    who->is_stopping = true;
    pthread_join(who->thread, NULL);
    unsigned n = who->n_latencies;
    assert_true(n > 0);
    qsort(who->latency_ms, n, sizeof(who->latency_ms[0]), compare);
    float p99 = who->latency_ms[(size_t)n * 99 / 100];
    printf("%s: %u calls meanwhile, p50 %.3f ms, p99 %.3f ms, the slowest %.3f ms, %llu peers "
           "dropped\n",
           attack, n, who->latency_ms[n / 2], p99, who->latency_ms[n - 1],
           (unsigned long long)counts.dropped);
    assert_int_equal(who->n_failures, 0);
    assert_true(p99 < MAX_P99_MS);
    weir_rpc_server_close(who->server);
    pthread_mutex_destroy(&who->lock);
    free(who->latency_ms);
    free(who);
}

/* Of this process. */
static double resident_mb(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*s %ld", &pages), 1);
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

/* Sanitizers keep memory of their own. */
static void assert_grew_at_most(double before_mb, double mb)
{
    double grew_mb = resident_mb() - before_mb;
    printf("resident memory grew by %.0f MB\n", grew_mb);
#ifdef MEASURES_MEMORY
    assert_true(grew_mb <= mb);
#else
    (void)mb;
#endif
}

/* What the server's thread counts is told every millisecond. */
static void wait_for_dropped(victim *who, uint64_t n)
{
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (counts_of(who).dropped < n && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    assert_true(counts_of(who).dropped >= n);
}

/* ---- floods ----------------------------------------------------------------------------------*/

typedef void flood(attacker *who, uint32_t i);

typedef struct drop_lines {
    pthread_mutex_t lock;
    unsigned n;
    char last[1024];
} drop_lines;

static void hear_drop(void *context, weir_log_level level, const char *line)
{
    drop_lines *lines = context;
    if (level != WEIR_LOG_WARN || strstr(line, "the connection from 127.0.0.1:") == NULL)
        return;
    pthread_mutex_lock(&lines->lock);
    lines->n++;
    snprintf(lines->last, sizeof(lines->last), "%s", line);
    pthread_mutex_unlock(&lines->lock);
}

/* Somebody was named, with why; and hundreds a second are a line a second. */
static void assert_told(drop_lines *lines, double begun_s)
{
    weir_log_set(NULL, NULL, WEIR_LOG_ERROR);
    assert_true(lines->n >= 1);
    assert_true(lines->n <= 2 + (unsigned)(weir_now_s() - begun_s));
    assert_non_null(strstr(lines->last, " is dropped ("));
    assert_non_null(strstr(lines->last, " so far): "));
}

/* Again and again: as many frames as the server bears. Each connection ends with its being told to
 * calm down, after no more than max_frames. */
static void attack(flood *one_more, unsigned max_frames, const char *name)
{
    victim *who = open_victim(NULL);
    attacker *bad = calloc(1, sizeof(*bad));
    uint64_t n_dropped = 0, n_calm = 0;
    drop_lines lines = { .lock = PTHREAD_MUTEX_INITIALIZER };
    double begun_s = weir_now_s();
    weir_log_set(hear_drop, &lines, WEIR_LOG_WARN);
    for (weir_deadline end = weir_deadline_in(ATTACK_MS); !weir_deadline_passed(end); n_dropped++) {
        assert_true(attacker_open(bad, weir_rpc_server_address(who->server)));
        uint32_t i = 0;
        bool is_open = true;
        while (is_open && i <= max_frames) {
            for (int k = 0; k < 50; k++, i++)
                one_more(bad, i);
            is_open = attacker_send(bad);
        }
        assert_true(attacker_wait_over(bad, TIMEOUT_MS));
        n_calm += bad->goaway_code == ENHANCE_YOUR_CALM;
        attacker_close(bad);
    }
    wait_for_dropped(who, n_dropped);
    assert_told(&lines, begun_s);
    assert_true(n_calm > 0); /* a reset of the connection may have swallowed some */
    close_victim(who, name);
    free(bad);
}

static void reset_one(attacker *who, uint32_t i)
{
    static const unsigned char cancel[4] = { 0, 0, 0, 8 };
    attacker_headers(who, 2 * i + 1, END_HEADERS);
    attacker_frame(who, RST_STREAM, 0, 2 * i + 1, cancel, sizeof(cancel));
}

/* A window beyond 2^31 makes the server reset the stream itself. */
static void make_reset_one(attacker *who, uint32_t i)
{
    static const unsigned char most[4] = { 0x7f, 0xff, 0xff, 0xff };
    attacker_headers(who, 2 * i + 1, END_HEADERS);
    attacker_frame(who, WINDOW_UPDATE, 0, 2 * i + 1, most, sizeof(most));
}

static void open_one(attacker *who, uint32_t i)
{
    attacker_headers(who, 2 * i + 1, END_HEADERS);
}

static void ping_one(attacker *who, uint32_t i)
{
    (void)i;
    attacker_frame(who, PING, 0, 0, "12345678", 8);
}

static void set_one(attacker *who, uint32_t i)
{
    (void)i;
    attacker_frame(who, SETTINGS, 0, 0, NULL, 0);
}

static void prioritise_one(attacker *who, uint32_t i)
{
    attacker_frame(who, PRIORITY, 0, 2 * i + 1, "\0\0\0\0\1", 5);
}

static void send_nothing(attacker *who, uint32_t i)
{
    if (i == 0)
        attacker_headers(who, 1, END_HEADERS);
    attacker_frame(who, DATA, 0, 1, NULL, 0);
}

static void send_one_byte(attacker *who, uint32_t i)
{
    static const unsigned char prefix[5] = { 0, 1, 0, 0, 0 }; /* 16 MiB, a byte at a time */
    if (i == 0)
        attacker_headers(who, 1, END_HEADERS);
    if (i == 0)
        attacker_frame(who, DATA, 0, 1, prefix, sizeof(prefix));
    attacker_frame(who, DATA, 0, 1, "x", 1);
}

static void test_rapid_resets(void **state)
{
    (void)state;
    attack(reset_one, 1000, "rapid resets");
}

static void test_provoked_resets(void **state)
{
    (void)state;
    attack(make_reset_one, 1000, "provoked resets");
}

static void test_streams_without_end(void **state)
{
    (void)state;
    attack(open_one, 2000, "streams beyond the bound");
}

static void test_pings(void **state)
{
    (void)state;
    attack(ping_one, 4000, "pings");
}

static void test_settings(void **state)
{
    (void)state;
    attack(set_one, 4000, "settings");
}

static void test_priorities(void **state)
{
    (void)state;
    attack(prioritise_one, 4000, "priorities");
}

/* Frames that nobody knows are passed over, as HTTP/2 says; they cost what their bytes do. */
static void test_unknown_frames(void **state)
{
    (void)state;
    victim *who = open_victim(NULL);
    attacker *bad = calloc(1, sizeof(*bad));
    assert_true(attacker_open(bad, weir_rpc_server_address(who->server)));
    for (weir_deadline end = weir_deadline_in(ATTACK_MS); !weir_deadline_passed(end);) {
        for (int i = 0; i < 5000; i++)
            attacker_frame(bad, UNKNOWN, 0, 0, NULL, 0);
        assert_true(attacker_send(bad));
    }
    attacker_close(bad);
    close_victim(who, "unknown frames");
    free(bad);
}

static void test_empty_data(void **state)
{
    (void)state;
    attack(send_nothing, 4000, "empty data");
}

static void test_data_byte_by_byte(void **state)
{
    (void)state;
    attack(send_one_byte, 8000, "data byte by byte");
}

/* ---- headers ---------------------------------------------------------------------------------*/

static void test_continuations_without_end(void **state)
{
    (void)state;
    victim *who = open_victim(NULL);
    attacker *bad = calloc(1, sizeof(*bad));
    assert_true(attacker_open(bad, weir_rpc_server_address(who->server)));
    attacker_frame(bad, HEADERS, 0, 1, "\x83", 1);
    for (int i = 0; i < 100; i++)
        attacker_frame(bad, CONTINUATION, 0, 1, "\x0f\x10\x01x", 4);
    attacker_send(bad);
    assert_true(attacker_wait_over(bad, TIMEOUT_MS));
    attacker_close(bad);
    wait_for_dropped(who, 1);
    close_victim(who, "continuations");
    free(bad);
}

/* 4,000 bytes put into the table once, and then named by one byte each, 15,000 times. */
static void test_header_bombs(void **state)
{
    (void)state;
    victim *who = open_victim(NULL);
    attacker *bad = calloc(1, sizeof(*bad));
    static unsigned char block[16384];
    memcpy(block, "\x83\x86\x84\x40\x01z\x7f\xa1\x1e", 9); /* a value of 127 + 0x21 + 30 * 128 */
    const size_t n_value = 127 + 0x21 + 30 * 128;
    memset(block + 9, 'v', n_value);
    memset(block + 9 + n_value, 0xbe, sizeof(block) - 9 - n_value);
    unsigned n = 0;
    for (weir_deadline end = weir_deadline_in(ATTACK_MS); !weir_deadline_passed(end); n++) {
        assert_true(attacker_open(bad, weir_rpc_server_address(who->server)));
        attacker_frame(bad, HEADERS, END_HEADERS | END_STREAM, 1, block, sizeof(block));
        attacker_send(bad);
        assert_true(attacker_wait_over(bad, TIMEOUT_MS));
        attacker_close(bad);
    }
    wait_for_dropped(who, n);
    close_victim(who, "header bombs");
    free(bad);
}

/* ---- those who are slow on purpose -----------------------------------------------------------*/

/* Asks for more than the server keeps of answers, and reads none. */
static void test_readers_that_do_not_read(void **state)
{
    (void)state;
    enum { N = 24 };
    victim *who = open_victim(NULL);
    attacker *bad = calloc(N, sizeof(*bad));
    double before_mb = resident_mb();
    for (int i = 0; i < N; i++) {
        assert_true(attacker_open(&bad[i], weir_rpc_server_address(who->server)));
        attacker_headers(&bad[i], 1, END_HEADERS);
        attacker_message(&bad[i], 1, "slots:15000");
        assert_true(attacker_send(&bad[i]));
    }
    wait_for_dropped(who, 1);
    assert_grew_at_most(before_mb, 500);
    for (int i = 0; i < N; i++)
        attacker_close(&bad[i]);
    close_victim(who, "readers that do not read");
    free(bad);
}

/* Each connection keeps a call open with half of its headers, or half of its message. */
static void open_half_calls(attacker *bad, int n, victim *who)
{
    for (int i = 0; i < n; i++) {
        assert_true(attacker_open(&bad[i], weir_rpc_server_address(who->server)));
        attacker_headers(&bad[i], 1, i % 2 ? END_HEADERS : 0);
        if (i % 2)
            attacker_frame(&bad[i], DATA, 0, 1, "\0\0\0\1\0half", 9);
        assert_true(attacker_send(&bad[i]));
    }
}

static void test_half_calls_give_way_to_others(void **state)
{
    (void)state;
    enum { N = 60 };
    victim *who = open_victim(&(weir_rpc_limits){ .connections = N });
    attacker *bad = calloc(N, sizeof(*bad));
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (counts_of(who).open_connections == 0 && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    open_half_calls(bad, N - 1, who);
    weir_status status = WEIR_ERR_PEER_LOST;
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    assert_int_equal(
        weir_rpc_client_open(weir_rpc_server_address(who->server), NULL, NULL, &client), WEIR_OK);
    while (status != WEIR_OK && !weir_deadline_passed(deadline)) {
        status = echo_call(client, "uid", 1000, &arena, NULL);
        if (status != WEIR_OK)
            weir_sleep_ms(50);
    }
    assert_int_equal(status, WEIR_OK);
    assert_true(counts_of(who).refused_connections > 0);
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    for (int i = 0; i < N - 1; i++)
        attacker_close(&bad[i]);
    close_victim(who, "half calls");
    free(bad);
}

/* Requests that never end occupy all that requests may: the small ones of others go on. */
static void test_half_requests_do_not_starve_others(void **state)
{
    (void)state;
    enum { N = 8 };
    victim *who = open_victim(
        &(weir_rpc_limits){ .request_bytes = 4 << 20, .client_request_bytes = 4 << 20 });
    attacker *bad = calloc(N, sizeof(*bad));
    static const unsigned char piece[16000];
    double before_mb = resident_mb();
    for (int i = 0; i < N; i++) {
        assert_true(attacker_open(&bad[i], weir_rpc_server_address(who->server)));
        attacker_headers(&bad[i], 1, END_HEADERS);
        attacker_frame(&bad[i], DATA, 0, 1, "\0\1\0\0\0", 5);
    }
    for (int round = 0; round < 100; round++) {
        for (int i = 0; i < N; i++) {
            attacker_frame(&bad[i], DATA, 0, 1, piece, sizeof(piece));
            assert_true(attacker_send(&bad[i]));
        }
    }
    unsigned n_resets = 0;
    for (weir_deadline end = weir_deadline_in(TIMEOUT_MS);
         n_resets < N / 2 && !weir_deadline_passed(end); weir_sleep_ms(1)) {
        n_resets = 0;
        for (int i = 0; i < N; i++) {
            attacker_listen(&bad[i]);
            n_resets += bad[i].n_resets;
        }
    }
    assert_grew_at_most(before_mb, 32);
    assert_true(n_resets >= N / 2); /* eight times 1.6 MB are three times too much */
    for (int i = 0; i < N; i++)
        attacker_close(&bad[i]);
    close_victim(who, "half requests");
    free(bad);
}

/* Eight halves of requests, 2 MiB, by one connection: the server has room for them, but a quarter
 * of that room is what one may have. */
static void test_one_connection_has_its_share_of_requests(void **state)
{
    (void)state;
    enum { N = 8, ROUNDS = 16 };
    victim *who =
        open_victim(&(weir_rpc_limits){ .message_bytes = 1 << 20, .request_bytes = 4 << 20 });
    attacker *bad = calloc(1, sizeof(*bad));
    static const unsigned char piece[16000];
    assert_true(attacker_open(bad, weir_rpc_server_address(who->server)));
    for (uint32_t i = 0; i < N; i++) {
        attacker_headers(bad, 2 * i + 1, END_HEADERS);
        attacker_frame(bad, DATA, 0, 2 * i + 1, "\0\0\x10\0\0", 5);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < N; i++) {
            attacker_frame(bad, DATA, 0, 2 * i + 1, piece, sizeof(piece));
            assert_true(attacker_send(bad));
        }
    }
    for (weir_deadline end = weir_deadline_in(TIMEOUT_MS);
         bad->n_resets == 0 && !weir_deadline_passed(end); weir_sleep_ms(1))
        attacker_listen(bad);
    assert_true(bad->n_resets > 0);
    attacker_close(bad);
    close_victim(who, "one connection's requests");
    free(bad);
}

/* Calls as many as it may at once, without a pause, on several connections. */
static void test_a_flood_of_calls_is_shared_fairly(void **state)
{
    (void)state;
    enum { N = 4 };
    victim *who = open_victim(NULL);
    attacker *bad = calloc(N, sizeof(*bad));
    uint32_t id = 1;
    for (int i = 0; i < N; i++)
        assert_true(attacker_open(&bad[i], weir_rpc_server_address(who->server)));
    for (weir_deadline end = weir_deadline_in(ATTACK_MS); !weir_deadline_passed(end); id += 200) {
        for (int i = 0; i < N; i++) {
            for (uint32_t k = 0; k < 100; k++) {
                attacker_headers(&bad[i], id + 2 * k, END_HEADERS);
                attacker_message(&bad[i], id + 2 * k, "uid");
            }
            attacker_frame(&bad[i], WINDOW_UPDATE, 0, 0, "\0\0\x40\0", 4);
            assert_true(attacker_send(&bad[i]));
        }
        for (int i = 0; i < N; i++)
            assert_true(attacker_wait_ended(&bad[i], (id + 199) / 2, TIMEOUT_MS));
    }
    for (int i = 0; i < N; i++)
        attacker_close(&bad[i]);
    close_victim(who, "a flood of calls");
    free(bad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rapid_resets),
        cmocka_unit_test(test_provoked_resets),
        cmocka_unit_test(test_streams_without_end),
        cmocka_unit_test(test_pings),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_priorities),
        cmocka_unit_test(test_unknown_frames),
        cmocka_unit_test(test_empty_data),
        cmocka_unit_test(test_data_byte_by_byte),
        cmocka_unit_test(test_continuations_without_end),
        cmocka_unit_test(test_header_bombs),
        cmocka_unit_test(test_readers_that_do_not_read),
        cmocka_unit_test(test_half_calls_give_way_to_others),
        cmocka_unit_test(test_half_requests_do_not_starve_others),
        cmocka_unit_test(test_one_connection_has_its_share_of_requests),
        cmocka_unit_test(test_a_flood_of_calls_is_shared_fairly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
