/* SPDX-License-Identifier: Apache-2.0 */
/* test_frame_link.c - frames over real sockets: both ways, large and many, and peers that lie,
 * stop, vanish or never read. Every wait is measured against its bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "rpc/frame_link.h"
#include "rpc/rpc_address.h"

#define TIMEOUT_MS 10000u
#define SLACK_MS 2000u /* what a busy machine may add to a bound */
#define MEGABYTE ((size_t)1 << 20)

typedef struct pair {
    weir_frame_listener *listener;
    weir_frame_link *near, *far; /* the ends of one connection: connected, accepted */
} pair;

static uint64_t ms_since(uint64_t begun_ns)
{
    return (weir_now_ns() - begun_ns) / 1000000u;
}

static weir_frame_link *accept_one(weir_frame_listener *listener)
{
    weir_frame_link *link = NULL;
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (link == NULL && !weir_deadline_passed(deadline)) {
        assert_int_equal(weir_frame_wait(listener, NULL, 0, TIMEOUT_MS), WEIR_OK);
        weir_frame_listener_accept(listener, &link);
    }
    assert_non_null(link);
    return link;
}

static int set_up(void **state)
{
    pair *p = weir_alloc_zeroed(1, sizeof(*p));
    assert_int_equal(weir_frame_listener_open("127.0.0.1", NULL, &p->listener), WEIR_OK);
    assert_int_equal(weir_frame_connect(weir_frame_listener_address(p->listener), "trainer 0", NULL,
                                        TIMEOUT_MS, &p->near),
                     WEIR_OK);
    p->far = accept_one(p->listener);
    weir_frame_link_rename(p->far, "replica 7");
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    pair *p = *state;
    weir_frame_link_close(p->near);
    weir_frame_link_close(p->far);
    weir_frame_listener_close(p->listener);
    weir_free(p);
    return 0;
}

static void expect_frame(weir_frame_link *link, uint16_t type, const void *payload, size_t n_bytes)
{
    weir_frame frame;
    assert_int_equal(weir_frame_receive(link, TIMEOUT_MS, &frame), WEIR_OK);
    assert_int_equal(frame.type, type);
    assert_int_equal(frame.n_bytes, n_bytes);
    assert_true(n_bytes == 0 || memcmp(frame.payload, payload, n_bytes) == 0);
}

/* Expects an error that names `who` and says `what`, and the same one the next time. */
static void expect_dead(weir_frame_link *link, weir_status status, const char *who,
                        const char *what)
{
    weir_frame frame;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(weir_frame_receive(link, TIMEOUT_MS, &frame), status);
        assert_non_null(strstr(weir_last_error(), who));
        if (strstr(weir_last_error(), what) == NULL)
            fail_msg("'%s' does not say '%s'", weir_last_error(), what);
    }
}

/* ---- a peer that is no frame link ------------------------------------------------------------*/

typedef struct raw_pair {
    int fd;
    weir_frame_link *link;
} raw_pair;

static raw_pair raw_connect(weir_frame_listener *listener)
{
    raw_pair raw = { .fd = -1 };
    weir_rpc_address address;
    assert_int_equal(weir_rpc_address_parse(weir_frame_listener_address(listener), &address),
                     WEIR_OK);
    assert_int_equal(weir_rpc_connect(&address, weir_deadline_in(TIMEOUT_MS), -1, &raw.fd),
                     WEIR_OK);
    raw.link = accept_one(listener);
    weir_frame_link_rename(raw.link, "replica raw");
    return raw;
}

static void raw_close(raw_pair *raw)
{
    weir_frame_link_close(raw->link);
    if (raw->fd >= 0)
        close(raw->fd);
}

static void make_header(unsigned char header[16], const char *magic, unsigned reserved,
                        uint64_t n_bytes)
{
    memset(header, 0, 16);
    memcpy(header, magic, 4);
    header[4] = 5;
    header[6] = (unsigned char)reserved;
    for (unsigned i = 0; i < 8; i++)
        header[8 + i] = (unsigned char)(n_bytes >> (8 * i));
}

static void raw_send(const raw_pair *raw, const void *bytes, size_t n_bytes)
{
    assert_int_equal(send(raw->fd, bytes, n_bytes, MSG_NOSIGNAL), n_bytes);
}

/* ---- the parser ------------------------------------------------------------------------------*/

static void a_frame_cut_anywhere_is_not_whole(void **state)
{
    (void)state;
    unsigned char bytes[16 + 3];
    weir_frame frame = { .type = 99 };
    size_t n = 0;
    make_header(bytes, "WFL1", 0, 3);
    memcpy(bytes + 16, "abc", 3);
    for (size_t cut = 0; cut < sizeof(bytes); cut++) {
        assert_int_equal(weir_frame_parse(bytes, cut, &frame, &n), WEIR_IN_PROGRESS);
        assert_int_equal(n, cut < 16 ? 16 : 19);
        assert_int_equal(frame.type, 99);
    }
    assert_int_equal(weir_frame_parse(bytes, sizeof(bytes), &frame, &n), WEIR_OK);
    assert_int_equal(n, sizeof(bytes));
    assert_int_equal(frame.type, 5);
    assert_int_equal(frame.n_bytes, 3);
    assert_memory_equal(frame.payload, "abc", 3);
}

static void bytes_that_are_no_frame_are_refused_at_the_first_wrong_one(void **state)
{
    (void)state;
    weir_frame frame;
    size_t n;
    assert_int_equal(weir_frame_parse("GET / HTTP", 1, &frame, &n), WEIR_ERR_CORRUPT);
    assert_int_equal(weir_frame_parse("WFL2", 3, &frame, &n), WEIR_IN_PROGRESS);
    assert_int_equal(weir_frame_parse("WFL2", 4, &frame, &n), WEIR_ERR_CORRUPT);
}

static void the_largest_frame_is_let_in_and_one_byte_more_is_not(void **state)
{
    (void)state;
    unsigned char header[16];
    weir_frame frame;
    size_t n;
    make_header(header, "WFL1", 0, WEIR_FRAME_MAX_BYTES);
    assert_int_equal(weir_frame_parse(header, 16, &frame, &n), WEIR_IN_PROGRESS);
    assert_int_equal(n, WEIR_FRAME_MAX_BYTES + 16);
    make_header(header, "WFL1", 0, WEIR_FRAME_MAX_BYTES + 1);
    assert_int_equal(weir_frame_parse(header, 16, &frame, &n), WEIR_ERR_CORRUPT);
    make_header(header, "WFL1", 0, UINT64_MAX);
    assert_int_equal(weir_frame_parse(header, 16, &frame, &n), WEIR_ERR_CORRUPT);
}

/* ---- both ways -------------------------------------------------------------------------------*/

static void frames_go_both_ways(void **state)
{
    pair *p = *state;
    assert_int_equal(weir_frame_send(p->near, 1, "one", 3, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_send(p->near, 65534, NULL, 0, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_send(p->far, 2, "two", 3, TIMEOUT_MS), WEIR_OK);
    expect_frame(p->far, 1, "one", 3);
    expect_frame(p->far, 65534, NULL, 0);
    expect_frame(p->near, 2, "two", 3);
}

/* Sends every frame back, until the peer closes. */
static void *echo(void *context)
{
    weir_frame_link *link = context;
    weir_frame frame;
    weir_deadline deadline = weir_deadline_in(60000);
    for (;;) {
        weir_status status = weir_frame_receive(link, 100, &frame);
        if (status == WEIR_OK)
            status = weir_frame_send(link, frame.type, frame.payload, frame.n_bytes, TIMEOUT_MS);
        if (status < 0 || weir_deadline_passed(deadline))
            return NULL;
    }
}

static pthread_t start_echo(pair *p)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, echo, p->far), 0);
    return thread;
}

static void stop_echo(pair *p, pthread_t thread)
{
    weir_frame_link_close(p->near);
    p->near = NULL;
    pthread_join(thread, NULL);
}

static void frames_of_a_megabyte_come_whole_and_grow_the_buffer_once(void **state)
{
    pair *p = *state;
    unsigned char *bytes = malloc(MEGABYTE);
    for (size_t i = 0; i < MEGABYTE; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 24);
    pthread_t thread = start_echo(p);
    uint64_t n_allocations = 0;
    for (int i = 0; i < 20; i++) {
        assert_int_equal(weir_frame_send(p->near, 3, bytes, MEGABYTE, TIMEOUT_MS), WEIR_OK);
        expect_frame(p->near, 3, bytes, MEGABYTE);
        if (i == 0)
            n_allocations = weir_alloc_count();
    }
    assert_int_equal(weir_alloc_count(), n_allocations);
    stop_echo(p, thread);
    free(bytes);
}

static void ten_thousand_small_frames_allocate_nothing(void **state)
{
    enum { N = 10000, BATCH = 2000 }; /* a batch is more than the buffer holds: frames are cut */
    pair *p = *state;
    char text[64];
    uint64_t n_allocations = weir_alloc_count();
    for (int first = 0; first < N; first += BATCH) {
        for (int i = first; i < first + BATCH; i++) {
            int n = snprintf(text, sizeof(text), "frame %d of a good many frames", i);
            assert_int_equal(weir_frame_send(p->near, 4, text, (size_t)n, TIMEOUT_MS), WEIR_OK);
        }
        for (int i = first; i < first + BATCH; i++) {
            int n = snprintf(text, sizeof(text), "frame %d of a good many frames", i);
            expect_frame(p->far, 4, text, (size_t)n);
        }
    }
    assert_int_equal(weir_alloc_count(), n_allocations);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void news_do_not_wait_for_more_bytes(void **state)
{
    enum { N = 1000 };
    pair *p = *state;
    static uint64_t round_ns[N];
    pthread_t thread = start_echo(p);
    for (int i = 0; i < N; i++) {
        uint64_t begun_ns = weir_now_ns();
        assert_int_equal(weir_frame_send(p->near, 2, "news", 4, TIMEOUT_MS), WEIR_OK);
        expect_frame(p->near, 2, "news", 4);
        round_ns[i] = weir_now_ns() - begun_ns;
    }
    qsort(round_ns, N, sizeof(round_ns[0]), by_value);
    print_message("[   INFO   ] there and back: median %.1f us, 99th percentile %.1f us\n",
                  (double)round_ns[N / 2] * 1e-3, (double)round_ns[N * 99 / 100] * 1e-3);
    assert_true(round_ns[N / 2] < 20000000u); /* delayed acknowledgements would make it 40 ms */
    stop_echo(p, thread);
}

/* ---- waiting ---------------------------------------------------------------------------------*/

static void waiting_for_a_frame_ends_in_time(void **state)
{
    pair *p = *state;
    weir_frame frame;
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_receive(p->near, 0, &frame), WEIR_IN_PROGRESS);
    assert_true(ms_since(begun_ns) < SLACK_MS);
    begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_receive(p->near, 60, &frame), WEIR_IN_PROGRESS);
    assert_in_range(ms_since(begun_ns), 60, 60 + SLACK_MS);
    begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_wait(p->listener, &p->near, 1, 60), WEIR_OK);
    assert_in_range(ms_since(begun_ns), 59, 60 + SLACK_MS);
    weir_frame_link *link = NULL;
    assert_int_equal(weir_frame_listener_accept(p->listener, &link), WEIR_IN_PROGRESS);
    assert_null(link);
}

static void waiting_ends_at_once_for_a_frame_that_is_in_the_buffer(void **state)
{
    pair *p = *state;
    weir_frame_link *const links[] = { NULL, p->near, p->far };
    assert_int_equal(weir_frame_send(p->near, 1, "a", 1, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_send(p->near, 1, "b", 1, TIMEOUT_MS), WEIR_OK);
    weir_sleep_ms(50); /* both have come */
    expect_frame(p->far, 1, "a", 1);
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_wait(NULL, links, 3, TIMEOUT_MS), WEIR_OK);
    assert_true(ms_since(begun_ns) < SLACK_MS);
    expect_frame(p->far, 1, "b", 1);
    begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_wait(NULL, links, 3, 60),
                     WEIR_OK); /* what was taken wakes nobody */
    assert_in_range(ms_since(begun_ns), 59, 60 + SLACK_MS);
}

static void waiting_ends_for_bytes_for_connections_and_for_the_dead(void **state)
{
    pair *p = *state;
    weir_frame_link *third;
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_send(p->near, 1, "a", 1, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_wait(p->listener, &p->far, 1, TIMEOUT_MS), WEIR_OK);
    expect_frame(p->far, 1, "a", 1);
    assert_int_equal(weir_frame_connect(weir_frame_listener_address(p->listener), "trainer 0", NULL,
                                        TIMEOUT_MS, &third),
                     WEIR_OK);
    assert_int_equal(weir_frame_wait(p->listener, &p->far, 1, TIMEOUT_MS), WEIR_OK);
    weir_frame_link_close(accept_one(p->listener));
    assert_int_equal(weir_frame_wait(NULL, &third, 1, TIMEOUT_MS), WEIR_OK);
    expect_dead(third, WEIR_ERR_PEER_LOST, "trainer 0", "closed the connection");
    assert_int_equal(weir_frame_wait(NULL, &third, 1, TIMEOUT_MS), WEIR_OK);
    weir_frame_link_close(third);
    assert_true(ms_since(begun_ns) < TIMEOUT_MS / 2);
}

static void more_links_than_can_be_watched_are_refused(void **state)
{
    pair *p = *state;
    assert_int_equal(weir_frame_wait(p->listener, &p->near, WEIR_FRAME_MAX_LINKS + 1, 0),
                     WEIR_ERR_INVALID);
}

/* ---- peers that lie or stop ------------------------------------------------------------------*/

static void a_wrong_header_kills_the_link_and_names_the_peer(void **state)
{
    const struct {
        const char *magic;
        unsigned reserved;
        uint64_t n_bytes;
        const char *line;
    } bad[] = { { "HTTP", 0, 0, "begins with 0x48" },
                { "WFL1", 3, 0, "0x0003 where 0 must be" },
                { "WFL1", 0, UINT64_MAX, "type 5 claims 18446744073709551615 bytes" } };
    pair *p = *state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        raw_pair raw = raw_connect(p->listener);
        unsigned char header[16];
        make_header(header, bad[i].magic, bad[i].reserved, bad[i].n_bytes);
        raw_send(&raw, header, sizeof(header));
        expect_dead(raw.link, WEIR_ERR_CORRUPT, "replica raw: ", bad[i].line);
        assert_int_equal(weir_frame_send(raw.link, 1, "x", 1, TIMEOUT_MS), WEIR_ERR_CORRUPT);
        raw_close(&raw);
    }
}

static void a_claimed_length_costs_no_memory_until_the_bytes_come(void **state)
{
    pair *p = *state;
    raw_pair raw = raw_connect(p->listener);
    unsigned char bytes[1016] = { 0 };
    weir_frame frame;
    make_header(bytes, "WFL1", 0, WEIR_FRAME_MAX_BYTES);
    uint64_t n_allocations = weir_alloc_count();
    raw_send(&raw, bytes, sizeof(bytes));
    assert_int_equal(weir_frame_receive(raw.link, 60, &frame), WEIR_IN_PROGRESS);
    assert_int_equal(weir_alloc_count(), n_allocations);
    raw_close(&raw);
}

static void a_peer_that_leaves_in_the_midst_of_a_frame_is_lost(void **state)
{
    pair *p = *state;
    raw_pair raw = raw_connect(p->listener);
    unsigned char bytes[24] = { 0 };
    make_header(bytes, "WFL1", 0, 100);
    raw_send(&raw, bytes, sizeof(bytes));
    close(raw.fd);
    raw.fd = -1;
    expect_dead(raw.link, WEIR_ERR_PEER_LOST, "replica raw",
                "closed the connection in the midst of a frame, after 24 of 116 bytes");
    raw_close(&raw);
}

static void a_peer_that_stops_in_the_midst_of_a_frame_is_given_up(void **state)
{
    pair *p = *state;
    raw_pair raw = raw_connect(p->listener);
    unsigned char bytes[24] = { 0 };
    make_header(bytes, "WFL1", 0, 100);
    weir_frame_link_set_stall(raw.link, 80);
    raw_send(&raw, bytes, sizeof(bytes));
    uint64_t begun_ns = weir_now_ns();
    expect_dead(raw.link, WEIR_ERR_TIMED_OUT, "replica raw",
                "24 of 116 bytes of a frame, then none for 80 ms");
    assert_in_range(ms_since(begun_ns), 79, 80 + SLACK_MS);
    raw_close(&raw);
}

static void a_frame_in_small_pieces_comes_whole(void **state)
{
    pair *p = *state;
    raw_pair raw = raw_connect(p->listener);
    unsigned char bytes[20] = { 0 };
    weir_frame frame;
    make_header(bytes, "WFL1", 0, 4);
    memcpy(bytes + 16, "slow", 4);
    for (size_t i = 0; i < sizeof(bytes); i++) {
        assert_int_equal(weir_frame_receive(raw.link, 1, &frame), WEIR_IN_PROGRESS);
        raw_send(&raw, bytes + i, 1);
    }
    expect_frame(raw.link, 5, "slow", 4);
    raw_close(&raw);
}

/* ---- peers that go ---------------------------------------------------------------------------*/

static void a_killed_peer_is_noticed_at_once(void **state)
{
    pair *p = *state;
    pid_t child = fork();
    if (child == 0) {
        weir_frame_link *link;
        if (weir_frame_connect(weir_frame_listener_address(p->listener), "root", NULL, TIMEOUT_MS,
                               &link) != WEIR_OK ||
            weir_frame_send(link, 1, "here", 4, TIMEOUT_MS) != WEIR_OK)
            _exit(1);
        for (;;)
            pause();
    }
    weir_frame_link *link = accept_one(p->listener);
    weir_frame_link_rename(link, "replica 3");
    expect_frame(link, 1, "here", 4);
    uint64_t begun_ns = weir_now_ns();
    kill(child, SIGKILL);
    expect_dead(link, WEIR_ERR_PEER_LOST, "replica 3", "closed the connection");
    print_message("[   INFO   ] a killed peer was noticed after %.1f ms\n",
                  (double)(weir_now_ns() - begun_ns) * 1e-6);
    assert_true(ms_since(begun_ns) < SLACK_MS);
    waitpid(child, NULL, 0);
    weir_frame_link_close(link);
}

static void sending_to_the_gone_fails_and_their_last_words_stay(void **state)
{
    pair *p = *state;
    raw_pair raw = raw_connect(p->listener);
    unsigned char word[18];
    make_header(word, "WFL1", 0, 2);
    memcpy(word + 16, "no", 2);
    raw_send(&raw, word, sizeof(word));
    close(raw.fd);
    raw.fd = -1;
    weir_status status = WEIR_OK;
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (status == WEIR_OK && !weir_deadline_passed(deadline)) /* the first still leaves */
        status = weir_frame_send(raw.link, 1, "x", 1, TIMEOUT_MS);
    assert_int_equal(status, WEIR_ERR_PEER_LOST);
    assert_non_null(strstr(weir_last_error(), "replica raw: the connection is lost"));
    expect_frame(raw.link, 5, "no", 2);
    weir_frame frame;
    assert_int_equal(weir_frame_receive(raw.link, TIMEOUT_MS, &frame), WEIR_ERR_PEER_LOST);
    raw_close(&raw);
}

static void what_was_sent_arrives_though_the_sender_closed_with_bytes_unread(void **state)
{
    pair *p = *state;
    for (int i = 0; i < 50; i++)
        assert_int_equal(weir_frame_send(p->far, 1, "unread", 6, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_send(p->near, 10, "why", 3, TIMEOUT_MS), WEIR_OK);
    weir_frame_link_close(p->near);
    p->near = NULL;
    expect_frame(p->far, 10, "why", 3);
    expect_dead(p->far, WEIR_ERR_PEER_LOST, "replica 7", "closed the connection");
}

static void a_peer_that_never_reads_blocks_no_longer_than_asked(void **state)
{
    pair *p = *state;
    unsigned char *bytes = weir_alloc_zeroed(1, WEIR_FRAME_MAX_BYTES);
    assert_int_equal(weir_frame_send(p->far, 10, "word", 4, TIMEOUT_MS), WEIR_OK);
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_send(p->near, 1, bytes, WEIR_FRAME_MAX_BYTES, 100),
                     WEIR_ERR_TIMED_OUT);
    assert_in_range(ms_since(begun_ns), 99, 100 + SLACK_MS);
    assert_non_null(strstr(weir_last_error(), "trainer 0: does not read: "));
    assert_non_null(strstr(weir_last_error(), "the link is dead"));
    begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_send(p->near, 1, "x", 1, TIMEOUT_MS), WEIR_ERR_TIMED_OUT);
    assert_true(ms_since(begun_ns) < SLACK_MS);
    expect_frame(p->near, 10, "word", 4); /* sending alone is over */
    expect_dead(p->far, WEIR_ERR_PEER_LOST, "replica 7", "in the midst of a frame");
    weir_free(bytes);
}

static void a_frame_of_which_nothing_left_can_be_sent_later(void **state)
{
    pair *p = *state;
    weir_status status;
    size_t n_sent = 0;
    do { /* until the kernel takes no more of them */
        status = weir_frame_send(p->near, 1, NULL, 0, 0);
        n_sent += status == WEIR_OK;
    } while (status == WEIR_OK);
    assert_int_equal(status, WEIR_ERR_TIMED_OUT);
    if (strstr(weir_last_error(), "not sent in 0 ms") == NULL)
        skip(); /* the kernel took half a header */
    for (size_t i = 0; i < n_sent; i++)
        expect_frame(p->far, 1, NULL, 0);
    assert_int_equal(weir_frame_send(p->near, 2, "again", 5, TIMEOUT_MS), WEIR_OK);
    expect_frame(p->far, 2, "again", 5);
}

static void a_frame_too_large_to_send_is_refused_and_the_link_lives(void **state)
{
    pair *p = *state;
    assert_int_equal(weir_frame_send(p->near, 1, "", WEIR_FRAME_MAX_BYTES + 1, TIMEOUT_MS),
                     WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "trainer 0: a frame of 67108865 bytes"));
    assert_int_equal(weir_frame_send(p->near, 1, "small", 5, TIMEOUT_MS), WEIR_OK);
    expect_frame(p->far, 1, "small", 5);
}

/* ---- opening ---------------------------------------------------------------------------------*/

static void connecting_to_nobody_fails_at_once_by_name(void **state)
{
    (void)state;
    weir_frame_listener *listener;
    weir_frame_link *link = NULL;
    char address[WEIR_RPC_ADDRESS_TEXT];
    assert_int_equal(weir_frame_listener_open("127.0.0.1", NULL, &listener), WEIR_OK);
    snprintf(address, sizeof(address), "%s", weir_frame_listener_address(listener));
    weir_frame_listener_close(listener);
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(weir_frame_connect(address, "trainer 0", NULL, TIMEOUT_MS, &link),
                     WEIR_ERR_PEER_LOST);
    assert_true(ms_since(begun_ns) < SLACK_MS);
    assert_non_null(strstr(weir_last_error(), "trainer 0 at 127.0.0.1:"));
    assert_int_equal(weir_frame_connect("nowhere", "trainer 0", NULL, TIMEOUT_MS, &link),
                     WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "trainer 0 at nowhere"));
    assert_int_equal(weir_frame_listener_open("", NULL, &listener), WEIR_ERR_INVALID);
    assert_null(link);
}

static void every_kind_of_address_can_be_connected_to(void **state)
{
    (void)state;
    const char *const hosts[] = { "127.0.0.1", "0.0.0.0", "localhost", "::1" };
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++) {
        weir_frame_listener *listener;
        weir_frame_link *near, *far;
        if (weir_frame_listener_open(hosts[i], NULL, &listener) != WEIR_OK) {
            assert_string_equal(hosts[i], "::1"); /* a machine without IPv6 */
            print_message("[  SKIPPED ] %s: %s\n", hosts[i], weir_last_error());
            continue;
        }
        assert_int_equal(weir_frame_connect(weir_frame_listener_address(listener), "root", NULL,
                                            TIMEOUT_MS, &near),
                         WEIR_OK);
        far = accept_one(listener);
        assert_non_null(strstr(weir_frame_link_who(far), " port "));
        assert_int_equal(weir_frame_send(near, 1, hosts[i], strlen(hosts[i]), TIMEOUT_MS), WEIR_OK);
        expect_frame(far, 1, hosts[i], strlen(hosts[i]));
        weir_frame_link_close(near);
        weir_frame_link_close(far);
        weir_frame_listener_close(listener);
    }
}

static void names_are_bounded_and_of_one_line(void **state)
{
    pair *p = *state;
    char name[600];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    name[3] = '\n';
    weir_frame_link_rename(p->near, name);
    assert_int_equal(strlen(weir_frame_link_who(p->near)), 255);
    assert_memory_equal(weir_frame_link_who(p->near), "nnn nn", 6);
}

static void running_out_of_memory_loses_no_bytes(void **state)
{
    pair *p = *state;
    weir_frame_link *link = NULL;
    weir_frame_listener *listener = NULL;
    for (uint64_t n = 1; n <= 2; n++) {
        weir_alloc_fail_at(n);
        assert_int_equal(weir_frame_connect(weir_frame_listener_address(p->listener), "root", NULL,
                                            TIMEOUT_MS, &link),
                         WEIR_ERR_NO_MEMORY);
        assert_null(link);
    }
    weir_alloc_fail_at(1);
    assert_int_equal(weir_frame_listener_open("127.0.0.1", NULL, &listener), WEIR_ERR_NO_MEMORY);

    static unsigned char bytes[100000];
    bytes[99999] = 1;
    weir_frame frame;
    assert_int_equal(weir_frame_send(p->near, 1, bytes, sizeof(bytes), TIMEOUT_MS), WEIR_OK);
    weir_alloc_fail_at(1);
    assert_int_equal(weir_frame_receive(p->far, TIMEOUT_MS, &frame), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    expect_frame(p->far, 1, bytes, sizeof(bytes));
}

int main(void)
{
#define WITH_PAIR(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_cut_anywhere_is_not_whole),
        cmocka_unit_test(bytes_that_are_no_frame_are_refused_at_the_first_wrong_one),
        cmocka_unit_test(the_largest_frame_is_let_in_and_one_byte_more_is_not),
        WITH_PAIR(frames_go_both_ways),
        WITH_PAIR(frames_of_a_megabyte_come_whole_and_grow_the_buffer_once),
        WITH_PAIR(ten_thousand_small_frames_allocate_nothing),
        WITH_PAIR(news_do_not_wait_for_more_bytes),
        WITH_PAIR(waiting_for_a_frame_ends_in_time),
        WITH_PAIR(waiting_ends_at_once_for_a_frame_that_is_in_the_buffer),
        WITH_PAIR(waiting_ends_for_bytes_for_connections_and_for_the_dead),
        WITH_PAIR(more_links_than_can_be_watched_are_refused),
        WITH_PAIR(a_wrong_header_kills_the_link_and_names_the_peer),
        WITH_PAIR(a_claimed_length_costs_no_memory_until_the_bytes_come),
        WITH_PAIR(a_peer_that_leaves_in_the_midst_of_a_frame_is_lost),
        WITH_PAIR(a_peer_that_stops_in_the_midst_of_a_frame_is_given_up),
        WITH_PAIR(a_frame_in_small_pieces_comes_whole),
        WITH_PAIR(a_killed_peer_is_noticed_at_once),
        WITH_PAIR(sending_to_the_gone_fails_and_their_last_words_stay),
        WITH_PAIR(what_was_sent_arrives_though_the_sender_closed_with_bytes_unread),
        WITH_PAIR(a_peer_that_never_reads_blocks_no_longer_than_asked),
        WITH_PAIR(a_frame_of_which_nothing_left_can_be_sent_later),
        WITH_PAIR(a_frame_too_large_to_send_is_refused_and_the_link_lives),
        cmocka_unit_test(connecting_to_nobody_fails_at_once_by_name),
        cmocka_unit_test(every_kind_of_address_can_be_connected_to),
        WITH_PAIR(names_are_bounded_and_of_one_line),
        WITH_PAIR(running_out_of_memory_loses_no_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
