/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_stream.c - reads over TCP, one side played by hand: readers that ask for what is not
 * theirs, and owners that answer what was not asked.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <pthread.h>
#include <sys/time.h>

#include "base/log.h"
#include "transport/conformance_bench.h"
#include "transport/ucx_stream.h"

#define REGION_BYTES (8 * MIB)
#define SEED 5u

/* ---- an owner, and readers that are played ---------------------------------------------------*/

typedef struct stage {
    const weir_transport_ops *ops;
    weir_transport *transport;
    weir_region *region;
    weir_ucx_address address;
    weir_ucx_group_key where; /* it listens */
    uint64_t base;            /* of the region's memory */
    unsigned n_warned;        /* log lines about readers that are shut out */
    pthread_mutex_t lock;
} stage;

static void count_line(void *user, weir_log_level level, const char *line)
{
    stage *s = user;
    if (level != WEIR_LOG_WARN || strstr(line, "is shut out") == NULL)
        return;
    pthread_mutex_lock(&s->lock);
    s->n_warned++;
    pthread_mutex_unlock(&s->lock);
}

static unsigned n_warned(stage *s)
{
    pthread_mutex_lock(&s->lock);
    unsigned n = s->n_warned;
    pthread_mutex_unlock(&s->lock);
    return n;
}

static weir_transport *open_over_tcp(const weir_transport_ops *ops)
{
    weir_transport *transport = NULL;
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.tls = "tcp";
    assert_ok(ops->open(&options, &transport));
    return transport;
}

static int stage_open(void **state)
{
    stage *s = calloc(1, sizeof(*s));
    *state = s;
    pthread_mutex_init(&s->lock, NULL);
    assert_ok(weir_transport_get("ucx", &s->ops));
    s->transport = open_over_tcp(s->ops);
    assert_ok(s->ops->allocate(s->transport, REGION_BYTES, &s->region));
    owner_fill(s->ops->region_data(s->region), REGION_BYTES, SEED);
    weir_seal nothing = WEIR_SEAL_INIT;
    assert_ok(s->ops->seal(s->region, &nothing));
    s->base = (uintptr_t)s->ops->region_data(s->region);
    const void *bytes;
    size_t n_bytes;
    assert_ok(s->ops->address(s->transport, &bytes, &n_bytes));
    assert_ok(weir_ucx_address_decode(bytes, n_bytes, "x", &s->address));
    assert_ok(
        weir_ucx_group_key_decode(s->address.stream, s->address.stream_bytes, "x", &s->where));
    weir_log_set(count_line, s, WEIR_LOG_WARN);
    return 0;
}

static int stage_close(void **state)
{
    stage *s = *state;
    s->ops->release(s->region);
    s->ops->close(s->transport);
    weir_log_set(NULL, NULL, WEIR_LOG_WARN);
    pthread_mutex_destroy(&s->lock);
    free(s);
    return 0;
}

static int dial(const stage *s)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons(s->where.port),
                              .sin_addr = { htonl(INADDR_LOOPBACK) } };
    const struct timeval bound = { 10, 0 };
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound));
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static void say(int fd, const void *bytes, size_t n_bytes)
{
    assert_int_equal(send(fd, bytes, n_bytes, MSG_NOSIGNAL), n_bytes);
}

/* How many bytes came before the end, or before there were enough. */
static size_t hear(int fd, void *bytes, size_t n_bytes)
{
    size_t n_in = 0;
    ssize_t n = 1;
    while (n_in < n_bytes && n > 0) {
        n = recv(fd, (uint8_t *)bytes + n_in, n_bytes - n_in, 0);
        assert_true(n >= 0 || errno == ECONNRESET); /* no bound has passed */
        n_in += n > 0 ? (size_t)n : 0;
    }
    return n_in;
}

static int join(const stage *s)
{
    uint8_t hello[WEIR_STREAM_HELLO_BYTES], welcome[WEIR_STREAM_WELCOME_BYTES];
    uint64_t greeting = 0;
    int fd = dial(s);
    weir_stream_hello_encode(s->where.nonce, hello);
    say(fd, hello, sizeof(hello));
    assert_int_equal(hear(fd, welcome, sizeof(welcome)), sizeof(welcome));
    assert_true(weir_stream_welcome_decode(welcome, &greeting));
    assert_true(greeting == s->address.greeting_is);
    return fd;
}

static void ask_for(int fd, const ucx_range *ranges, uint32_t n_ranges)
{
    uint8_t request[WEIR_STREAM_REQUEST_BYTES];
    weir_stream_request_encode(n_ranges, request);
    for (uint32_t i = 0; i < n_ranges; i++)
        weir_stream_range_encode(ranges[i],
                                 request + WEIR_STREAM_HEAD_BYTES + i * WEIR_STREAM_RANGE_BYTES);
    say(fd, request, WEIR_STREAM_HEAD_BYTES + n_ranges * WEIR_STREAM_RANGE_BYTES);
}

static ucx_answer hear_answer(int fd)
{
    uint8_t head[WEIR_STREAM_HEAD_BYTES];
    ucx_answer answer;
    assert_int_equal(hear(fd, head, sizeof(head)), sizeof(head));
    assert_true(weir_stream_answer_decode(head, &answer));
    return answer;
}

static void assert_refused(int fd, const char *why)
{
    char reason[WEIR_STREAM_REASON] = "";
    ucx_answer answer = hear_answer(fd);
    assert_true(answer.refused);
    assert_int_equal(hear(fd, reason, sizeof(reason)), answer.n_bytes); /* and the end behind it */
    assert_non_null(strstr(reason, why));
    close(fd);
}

static void assert_served(stage *s)
{
    uint8_t bytes[100];
    int fd = join(s);
    ask_for(fd, &(ucx_range){ s->base + 12345, sizeof(bytes) }, 1);
    assert_int_equal(hear_answer(fd).n_bytes, sizeof(bytes));
    assert_int_equal(hear(fd, bytes, sizeof(bytes)), sizeof(bytes));
    assert_int_equal(owner_compare(bytes, 12345, sizeof(bytes), SEED), sizeof(bytes));
    close(fd);
}

/* ---- what an owner answers -------------------------------------------------------------------*/

static void requests_are_answered_in_their_order(void **state)
{
    stage *s = *state;
    int fd = join(s);
    const ucx_range first[] = { { s->base + 7, 5000 }, { s->base, 1 }, { s->base + 7, 3 } };
    const ucx_range second[] = { { s->base + REGION_BYTES - 1, 1 },
                                 { s->base, WEIR_STREAM_BYTES - 1 } };
    uint8_t *bytes = malloc(WEIR_STREAM_BYTES);
    ask_for(fd, first, 3);
    ask_for(fd, second, 2);
    assert_int_equal(hear_answer(fd).n_bytes, 5004);
    assert_int_equal(hear(fd, bytes, 5004), 5004);
    assert_int_equal(owner_compare(bytes, 7, 5000, SEED), 5000);
    assert_int_equal(owner_compare(bytes + 5000, 0, 1, SEED), 1);
    assert_int_equal(owner_compare(bytes + 5001, 7, 3, SEED), 3);
    assert_int_equal(hear_answer(fd).n_bytes, WEIR_STREAM_BYTES);
    assert_int_equal(hear(fd, bytes, WEIR_STREAM_BYTES), WEIR_STREAM_BYTES);
    assert_int_equal(owner_compare(bytes, REGION_BYTES - 1, 1, SEED), 1);
    assert_int_equal(owner_compare(bytes + 1, 0, WEIR_STREAM_BYTES - 1, SEED),
                     WEIR_STREAM_BYTES - 1);
    free(bytes);
    close(fd);
}

static void who_does_not_show_the_word_hears_nothing(void **state)
{
    stage *s = *state;
    uint8_t hello[WEIR_STREAM_HELLO_BYTES], byte;
    for (size_t i = 0; i < sizeof(hello); i++) {
        weir_stream_hello_encode(s->where.nonce, hello);
        hello[i] ^= 1;
        int fd = dial(s);
        say(fd, hello, sizeof(hello));
        assert_int_equal(hear(fd, &byte, 1), 0);
        close(fd);
    }
    assert_int_equal(n_warned(s), 0); /* strangers fill no log */
    assert_served(s);
}

static void ranges_outside_of_sealed_regions_are_refused(void **state)
{
    stage *s = *state;
    weir_region *unsealed = NULL;
    assert_ok(s->ops->allocate(s->transport, 4096, &unsealed));
    const ucx_range wrong[] = {
        { s->base + REGION_BYTES - 10, 11 },
        { s->base - 1, 10 },
        { 0, 1 },
        { UINT64_MAX - 9, 9 },
        { (uintptr_t)s->ops->region_data(unsealed), 16 },
    };
    const size_t n_wrong = sizeof(wrong) / sizeof(wrong[0]);
    for (size_t i = 0; i < n_wrong; i++) {
        int fd = join(s);
        ask_for(fd, (ucx_range[]){ { s->base, 10 }, wrong[i] }, 2);
        assert_refused(fd, "no sealed region has the");
    }
    assert_int_equal(n_warned(s), n_wrong);
    s->ops->release(unsealed);
    assert_served(s);
}

static void requests_that_make_no_sense_are_refused(void **state)
{
    stage *s = *state;
    const ucx_range wrong[][2] = {
        { { s->base, WEIR_STREAM_BYTES }, { s->base, 1 } }, /* too long together */
        { { s->base, 0 }, { s->base, 1 } },
        { { s->base, 1 }, { UINT64_MAX, 2 } },
        { { s->base, UINT64_MAX }, { s->base, 2 } },
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        int fd = join(s);
        ask_for(fd, wrong[i], 2);
        assert_refused(fd, "its request is longer than one may be");
    }
    const uint32_t counts[] = { 0, WEIR_STREAM_RANGES + 1, UINT32_MAX };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        uint8_t head[WEIR_STREAM_HEAD_BYTES];
        int fd = join(s);
        weir_stream_request_encode(counts[i], head);
        say(fd, head, sizeof(head));
        assert_refused(fd, "it says what is no request");
    }
    assert_served(s);
}

/* It asks for all that one request may and takes nothing of it. */
static void a_region_is_released_while_a_reader_stands_still(void **state)
{
    stage *s = *state;
    int fd = join(s);
    for (int i = 0; i < 4; i++)
        ask_for(fd, &(ucx_range){ s->base, WEIR_STREAM_BYTES }, 1);
    assert_int_equal(hear_answer(fd).n_bytes, WEIR_STREAM_BYTES);
    double begun = weir_now_s();
    s->ops->release(s->region);
    assert_true(weir_now_s() - begun < 2.0);
    s->region = NULL;
    uint8_t *bytes = malloc(4 * WEIR_STREAM_BYTES);
    size_t n_bytes = hear(fd, bytes, 4 * WEIR_STREAM_BYTES);
    assert_true(n_bytes < 4 * WEIR_STREAM_BYTES); /* the rest is not sent from what is gone */
    free(bytes);
    close(fd);
    fd = join(s);
    ask_for(fd, &(ucx_range){ s->base, 1 }, 1);
    assert_refused(fd, "no sealed region has the");
}

/* As of a program that frees what it exposed; memory of a GPU looks the same to the kernel. */
static void memory_that_is_gone_harms_no_owner(void **state)
{
    stage *s = *state;
    weir_region *region = NULL;
    weir_seal nothing = WEIR_SEAL_INIT;
    char byte;
    void *data = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(data != MAP_FAILED);
    assert_ok(s->ops->expose(s->transport, data, 4096, &region));
    assert_ok(s->ops->seal(region, &nothing));
    assert_int_equal(mprotect(data, 4096, PROT_NONE), 0);
    int fd = join(s);
    ask_for(fd, &(ucx_range){ (uintptr_t)data, 100 }, 1);
    uint8_t head[WEIR_STREAM_HEAD_BYTES];
    assert_true(hear(fd, head, sizeof(head)) == 0 || hear(fd, &byte, 1) == 0);
    close(fd);
    assert_int_equal(n_warned(s), 1);
    s->ops->release(region);
    munmap(data, 4096);
    assert_served(s);
}

static void strangers_at_the_door_keep_nobody_out(void **state)
{
    enum { n_strangers = 100 };
    stage *s = *state;
    int strangers[n_strangers];
    char byte;
    for (size_t i = 0; i < n_strangers; i++)
        strangers[i] = dial(s);
    assert_served(s);
    assert_int_equal(hear(strangers[0], &byte, 1), 0); /* whoever waits longest gives way */
    for (size_t i = 0; i < n_strangers; i++)
        close(strangers[i]);
    assert_served(s);
}

/* ---- an owner that is played -----------------------------------------------------------------*/

typedef struct false_owner {
    int listener;
    bool greets;
    const void *answer; /* to the first request; then the connection ends */
    size_t answer_bytes;
} false_owner;

static void *play_owner(void *argument)
{
    const false_owner *play = argument;
    uint8_t hello[WEIR_STREAM_HELLO_BYTES], welcome[WEIR_STREAM_WELCOME_BYTES];
    uint8_t request[WEIR_STREAM_HEAD_BYTES + WEIR_STREAM_RANGE_BYTES];
    int fd = accept(play->listener, NULL, NULL);
    recv(fd, hello, sizeof(hello), MSG_WAITALL);
    weir_stream_welcome_encode(play->greets ? 77 : 78, welcome);
    send(fd, welcome, sizeof(welcome), MSG_NOSIGNAL);
    if (play->greets) {
        recv(fd, request, sizeof(request), MSG_WAITALL);
        if (play->answer_bytes > 0)
            send(fd, play->answer, play->answer_bytes, MSG_NOSIGNAL);
    }
    shutdown(fd, SHUT_WR);
    recv(fd, hello, 1, 0); /* until the reader has gone */
    close(fd);
    return NULL;
}

/* The true owner's address but for where it listens, and its region's key. */
static weir_status read_from(stage *s, false_owner *play, uint8_t *out)
{
    weir_ucx_address address = s->address;
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t at_bytes = sizeof(at);
    weir_key_buffer bytes = { 0 };
    weir_transport *transport = open_over_tcp(s->ops);
    weir_peer *peer = NULL;
    weir_remote_region *remote = NULL;
    weir_transfer *transfer = NULL;
    const void *key;
    size_t key_bytes;
    pthread_t thread;
    play->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(play->listener, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(play->listener, 4), 0);
    getsockname(play->listener, (struct sockaddr *)&at, &at_bytes);
    weir_ucx_group_key where = s->where;
    weir_key_buffer place = { 0 };
    where.port = ntohs(at.sin_port);
    where.n_addresses = 0; /* the loopback alone */
    assert_ok(weir_ucx_group_key_encode(&where, &place));
    address.stream = place.data;
    address.greeting_is = 77;
    assert_ok(weir_ucx_address_encode(&address, &bytes));
    assert_ok(s->ops->region_key(s->region, &key, &key_bytes));
    assert_int_equal(pthread_create(&thread, NULL, play_owner, play), 0);
    weir_status status =
        s->ops->connect(transport, bytes.data, bytes.n_bytes, "owner 7", WAIT_MS, &peer);
    if (status == WEIR_OK)
        assert_ok(s->ops->import(peer, key, key_bytes, &remote));
    weir_copy copy = { remote, 0, out, 100 };
    if (status == WEIR_OK)
        status = s->ops->post(peer, &copy, 1, &transfer);
    if (status == WEIR_OK)
        status = weir_transfer_wait(transfer, WAIT_MS);
    s->ops->finish(transfer);
    s->ops->forget(remote);
    s->ops->disconnect(peer);
    s->ops->close(transport);
    pthread_join(thread, NULL);
    close(play->listener);
    weir_key_buffer_close(&bytes);
    weir_key_buffer_close(&place);
    return status;
}

static void assert_is_lost(stage *s, bool greets, const void *answer, size_t answer_bytes,
                           const char *why)
{
    uint8_t out[100 + 1];
    char expected[200];
    memset(out, 0xee, sizeof(out));
    false_owner play = { -1, greets, answer, answer_bytes };
    assert_int_equal(read_from(s, &play, out), WEIR_ERR_PEER_LOST);
    snprintf(expected, sizeof(expected), "owner 7: peer went away: %s", why);
    assert_string_equal(weir_last_error(), expected);
    assert_int_equal(out[100], 0xee);
}

static void what_another_owner_says_is_not_taken(void **state)
{
    stage *s = *state;
    uint8_t answer[WEIR_STREAM_HEAD_BYTES + 200] = { 0 };
    assert_is_lost(s, false, NULL, 0, "another process answers at its address");
    assert_is_lost(s, true, NULL, 0, "its connection has ended");
    weir_stream_answer_encode((ucx_answer){ false, 100 }, answer);
    assert_is_lost(s, true, answer, 10, "its connection has ended");
    assert_is_lost(s, true, answer, WEIR_STREAM_HEAD_BYTES + 99, "its connection has ended");
    weir_stream_answer_encode((ucx_answer){ false, 101 }, answer);
    assert_is_lost(s, true, answer, sizeof(answer), "it says what is no answer");
    answer[0] = 'X';
    assert_is_lost(s, true, answer, sizeof(answer), "it says what is no answer");
    weir_stream_answer_encode((ucx_answer){ true, 5 }, answer);
    memcpy(answer + WEIR_STREAM_HEAD_BYTES, "no\nno", 5);
    assert_is_lost(s, true, answer, WEIR_STREAM_HEAD_BYTES + 5, "no no");
    weir_stream_answer_encode((ucx_answer){ true, WEIR_STREAM_REASON }, answer);
    assert_is_lost(s, true, answer, sizeof(answer), "it says what is no answer");
}

static void an_address_without_a_place_to_connect_to_is_refused(void **state)
{
    stage *s = *state;
    weir_ucx_address address = s->address;
    weir_key_buffer bytes = { 0 };
    weir_peer *peer = NULL;
    weir_transport *transport = open_over_tcp(s->ops);
    address.stream_bytes = 0;
    assert_ok(weir_ucx_address_encode(&address, &bytes));
    assert_int_equal(bytes.data[6], 1); /* the format version of those that know no other */
    assert_int_equal(
        s->ops->connect(transport, bytes.data, bytes.n_bytes, "owner 7", WAIT_MS, &peer),
        WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(),
                        "owner 7: there is nothing but TCP between the two, and it does not say "
                        "where it listens");
    assert_null(peer);
    s->ops->close(transport);
    weir_key_buffer_close(&bytes);
}

/* ---- where an owner is reached ---------------------------------------------------------------*/

static void addresses_are_those_of_the_devices_that_are_named(void **state)
{
    (void)state;
    weir_ucx_group_key all = { .n_addresses = 0 }, some = { .n_addresses = 0 };
    unsetenv("UCX_NET_DEVICES");
    weir_stream_own_addresses(&all);
    setenv("UCX_NET_DEVICES", "mlx5_0:1", 1); /* none of them: all stay */
    weir_stream_own_addresses(&some);
    assert_int_equal(some.n_addresses, all.n_addresses);
    assert_memory_equal(some.addresses, all.addresses, sizeof(all.addresses));
    struct ifaddrs *entries;
    assert_int_equal(getifaddrs(&entries), 0);
    for (struct ifaddrs *entry = entries; entry != NULL; entry = entry->ifa_next) {
        char devices[64];
        snprintf(devices, sizeof(devices), "mlx5_0:1,%s", entry->ifa_name);
        setenv("UCX_NET_DEVICES", devices, 1);
        weir_stream_own_addresses(&some);
        if (entry->ifa_addr != NULL && entry->ifa_addr->sa_family == AF_INET &&
            (entry->ifa_flags & IFF_LOOPBACK) == 0) {
            const struct sockaddr_in *at = (const void *)entry->ifa_addr;
            assert_true(some.n_addresses >= 1 && some.addresses[0].family == 4);
            assert_memory_equal(some.addresses[0].bytes, &at->sin_addr, 4);
        }
    }
    freeifaddrs(entries);
    unsetenv("UCX_NET_DEVICES");
}

#define CASE(function)                                     \
    {                                                      \
#function, function, stage_open, stage_close, NULL \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(requests_are_answered_in_their_order),
        CASE(who_does_not_show_the_word_hears_nothing),
        CASE(ranges_outside_of_sealed_regions_are_refused),
        CASE(requests_that_make_no_sense_are_refused),
        CASE(a_region_is_released_while_a_reader_stands_still),
        CASE(memory_that_is_gone_harms_no_owner),
        CASE(strangers_at_the_door_keep_nobody_out),
        CASE(what_another_owner_says_is_not_taken),
        CASE(an_address_without_a_place_to_connect_to_is_refused),
        CASE(addresses_are_those_of_the_devices_that_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
