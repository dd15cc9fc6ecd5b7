/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx.c - what is UCX's alone: versions, forged keys, pages given back, no right to trace. */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>

#include "base/alloc.h"
#include "transport/conformance_bench.h"
#include "transport/ucx.h"

static const setting shared = { "ucx", "ucx", "", false, NULL, 0 };
static const setting over_tcp = { "ucx over tcp", "ucx", "tcp", true, NULL, 0 };

/* This process's own UCX version, from an address of its own. */
static weir_ucx_address address_of(bench *b)
{
    weir_ucx_address address;
    ask_address(b);
    assert_ok(weir_ucx_address_decode(b->address, b->address_bytes, "x", &address));
    return address;
}

static void a_peer_of_another_ucx_is_refused_by_name(void **state)
{
    bench *b = bench_of(state);
    weir_ucx_address address = address_of(b);
    char expected[300];
    snprintf(expected, sizeof(expected),
             "trainer rank 1: peer runs UCX 1.99.0, this process %s: their remote keys are not "
             "compatible",
             address.ucx_version);
    snprintf(address.ucx_version, sizeof(address.ucx_version), "1.99.0");
    weir_key_buffer other = { 0 };
    weir_peer *peer = NULL;
    assert_ok(weir_ucx_address_encode(&address, &other));
    assert_int_equal(
        b->ops->connect(b->transport, other.data, other.n_bytes, "trainer rank 1", 100, &peer),
        WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), expected);
    weir_key_buffer_close(&other);
    assert_null(peer);
}

static void a_key_of_another_ucx_is_refused(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 5000, 1);
    weir_ucx_key key;
    weir_key_buffer other = { 0 };
    weir_remote_region *remote = NULL;
    assert_ok(weir_ucx_key_decode(b->key, b->key_bytes, "x", &key));
    snprintf(key.ucx_version, sizeof(key.ucx_version), "1.1");
    assert_ok(weir_ucx_key_encode(&key, &other));
    assert_int_equal(b->ops->import(b->peer, other.data, other.n_bytes, &remote),
                     WEIR_ERR_UNSUPPORTED);
    weir_key_buffer_close(&other);
}

static void a_key_that_claims_more_than_its_segment_is_refused(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 5000, 2);
    weir_ucx_key key;
    weir_key_buffer forged = { 0 };
    weir_remote_region *remote = NULL;
    assert_ok(weir_ucx_key_decode(b->key, b->key_bytes, "x", &key));
    key.n_bytes = 1ull << 40;
    assert_ok(weir_ucx_key_encode(&key, &forged));
    assert_int_equal(b->ops->import(b->peer, forged.data, forged.n_bytes, &remote),
                     WEIR_ERR_CORRUPT);
    assert_non_null(strstr(weir_last_error(), "more than its segment has"));
    weir_key_buffer_close(&forged);
    assert_reads(b, 0, 5000, 2);
}

static void another_process_at_the_address_is_no_peer(void **state)
{
    bench *b = bench_of(state);
    weir_ucx_address address = address_of(b);
    address.greeting_is++;
    weir_key_buffer other = { 0 };
    assert_ok(weir_ucx_address_encode(&address, &other));
    assert_int_equal(
        b->ops->connect(b->transport, other.data, other.n_bytes, "owner 0", WAIT_MS, &b->peer),
        WEIR_ERR_PEER_LOST);
    assert_string_equal(weir_last_error(),
                        "owner 0: peer went away: another process answers at its address");
    weir_key_buffer_close(&other);
    assert_null(b->peer);
}

static void a_stopped_owner_is_not_connected_to(void **state)
{
    bench *b = bench_of(state);
    ask_address(b);
    kill(b->owner->pid, SIGSTOP);
    assert_int_equal(waitpid(b->owner->pid, NULL, WUNTRACED), b->owner->pid); /* it stands still */
    double start = weir_now_s();
    assert_int_equal(
        b->ops->connect(b->transport, b->address, b->address_bytes, "owner 0", 300, &b->peer),
        WEIR_ERR_TIMED_OUT);
    assert_string_equal(weir_last_error(), "owner 0: no answer to a connection for 0.3 s");
    assert_true(weir_now_s() - start < 2.0);
    kill(b->owner->pid, SIGCONT); /* and is none the worse for it */
    connect_owner(b);
}

static uint64_t resident_pages(uint8_t *data, size_t n_bytes)
{
    static unsigned char resident[LARGE / 4096];
    uint64_t n = 0;
    assert_int_equal(mincore(data, n_bytes, resident), 0);
    for (size_t i = 0; i < n_bytes / 4096; i++)
        n += resident[i] & 1;
    return n;
}

static void a_released_region_gives_its_memory_back(void **state)
{
    bench *b = bench_of(state);
    weir_region *region;
    assert_ok(b->ops->allocate(b->transport, LARGE, &region));
    uint8_t *data = b->ops->region_data(region);
    assert_int_equal(resident_pages(data, LARGE), LARGE / 4096); /* faulted in ahead */
    memset(data, 1, LARGE);
    weir_seal nothing = WEIR_SEAL_INIT;
    assert_ok(b->ops->seal(region, &nothing));
    b->ops->release(region);
    assert_int_equal(resident_pages(data, LARGE), 0);
    assert_int_equal(data[LARGE - 1], 0); /* and is still there for a late reader */
}

static void a_list_of_unknown_transports_is_refused(void **state)
{
    bench *b = bench_of(state);
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    options.tls = "pigeon";
    weir_transport *transport = NULL;
    assert_int_equal(b->ops->open(&options, &transport), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "'pigeon'"));
    assert_null(transport);
}

static bool deny_tracing(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_writev, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1 /* EPERM */),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* As in a container: from here on, this process may not touch another's memory by system call. The
 * filter stays, so this case runs last. */
static void reads_where_tracing_is_denied(void **state)
{
    bench *b = bench_of(state);
    if (!deny_tracing()) {
        print_message("skipped: this kernel takes no seccomp filter\n");
        skip();
    }
    share(b, OWNER_ALLOCATE, 10 * MIB, 3);
    assert_reads(b, 0, 10 * MIB, 3);
    b->ops->forget(b->remote);
    b->ops->disconnect(b->peer);
    b->remote = NULL;
    b->peer = NULL;
    owner_must(b, OWNER_RELEASE, 0, 0, 0, "");
    share(b, OWNER_EXPOSE, 10 * MIB, 4);
    assert_reads(b, 0, 10 * MIB, 4);
}

static void assert_without_tcp(const char *tls, const char *expected)
{
    char *list = NULL;
    assert_ok(weir_ucx_without_tcp(tls, &list));
    assert_string_equal(list, expected);
    weir_free(list);
}

static void tcp_is_left_out_of_any_list(void **state)
{
    (void)state;
    assert_without_tcp(NULL, "^tcp");
    assert_without_tcp("all", "^tcp");
    assert_without_tcp("^cma,sysv", "^cma,sysv,tcp");
    assert_without_tcp("tcp", "");
    assert_without_tcp("tcp,cma,tcp,posix", "cma,posix");
    assert_without_tcp("tcpx", "tcpx");
    char many[2048] = "^", expected[2048 + 4];
    while (strlen(many) + 6 < sizeof(many))
        strcat(many, many[1] == '\0' ? "posix" : ",posix");
    snprintf(expected, sizeof(expected), "%s,tcp", many);
    assert_without_tcp(many, expected);
    assert_without_tcp(many + 1, many + 1);
}

#define CASE(function, setting_)                                                       \
    {                                                                                  \
#function, function, bench_open, bench_close, (void *)(uintptr_t) & (setting_) \
    }

int main(int argc, char **argv)
{
    if (argc == 5)
        return owner_main(argv[1], argv[2], argv[3], atoi(argv[4]));
    const struct CMUnitTest tests[] = {
        CASE(a_peer_of_another_ucx_is_refused_by_name, shared),
        CASE(a_key_of_another_ucx_is_refused, shared),
        CASE(a_key_that_claims_more_than_its_segment_is_refused, shared),
        CASE(another_process_at_the_address_is_no_peer, shared),
        CASE(another_process_at_the_address_is_no_peer, over_tcp),
        CASE(a_stopped_owner_is_not_connected_to, shared),
        CASE(a_stopped_owner_is_not_connected_to, over_tcp),
        CASE(a_released_region_gives_its_memory_back, shared),
        CASE(a_released_region_gives_its_memory_back, over_tcp),
        CASE(a_list_of_unknown_transports_is_refused, shared),
        cmocka_unit_test(tcp_is_left_out_of_any_list),
        CASE(reads_where_tracing_is_denied, shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
