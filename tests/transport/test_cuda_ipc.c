/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_ipc.c - what is cuda_ipc's alone: hosts, handles and pieces, mappings that are shared,
 * strangers at the socket, an owner that is this very process. */
#include <sys/un.h>

#include "transport/conformance_bench.h"
#include "transport/cuda_ipc_message.h"

static const setting handles = { "cuda_ipc", "cuda_ipc", "malloc 0", false, "malloc 0", 1 };
static const setting shareable = {
    "cuda_ipc of shareable memory", "cuda_ipc", "shareable 0", false, "malloc 0", 1
};
static const setting pieces = {
    "cuda_ipc of memory in pieces", "cuda_ipc", "pieces 0", false, "malloc 0", 1
};
static const setting two_gpus = {
    "cuda_ipc with two GPUs", "cuda_ipc", "malloc 1", false, "malloc 0", 2
};

static void a_peer_on_another_host_is_refused_by_name(void **state)
{
    bench *b = bench_of(state);
    weir_cuda_ipc_address address;
    weir_key_buffer other = { 0 };
    char host[WEIR_KEY_TEXT];
    ask_address(b);
    assert_ok(weir_cuda_ipc_address_decode(b->address, b->address_bytes, "x", &address));
    memcpy(host, address.host, sizeof(host));
    snprintf(address.host, sizeof(address.host), "node-17");
    snprintf(address.place, sizeof(address.place), "another boot net:[7]");
    assert_ok(weir_cuda_ipc_address_encode(&address, &other));
    assert_int_equal(
        b->ops->connect(b->transport, other.data, other.n_bytes, "rank 1", 100, &b->peer),
        WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "rank 1: peer is on host 'node-17'"));
    assert_non_null(strstr(weir_last_error(), host));
    weir_key_buffer_close(&other);
}

static void assert_key_refused(bench *b, const weir_cuda_ipc_key *key, weir_status expected)
{
    weir_key_buffer forged = { 0 };
    weir_remote_region *remote = NULL;
    assert_ok(weir_cuda_ipc_key_encode(key, &forged));
    assert_int_equal(b->ops->import(b->peer, forged.data, forged.n_bytes, &remote), expected);
    assert_memory_equal(weir_last_error(), "owner 0", 7);
    assert_null(remote);
    weir_key_buffer_close(&forged);
}

static void forged_and_outdated_keys_are_refused(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_EXPOSE, 5000, 1);
    weir_cuda_ipc_key key, forged;
    assert_ok(weir_cuda_ipc_key_decode(b->key, b->key_bytes, "x", &key));
    forged = key;
    forged.n_bytes++;
    assert_key_refused(b, &forged, WEIR_ERR_CORRUPT);
    forged = key;
    forged.owner[1] ^= 1;
    assert_key_refused(b, &forged, WEIR_ERR_CORRUPT);
    forged = key;
    forged.region += 100;
    assert_key_refused(b, &forged, WEIR_ERR_NOT_FOUND);
    assert_reads(b, 0, 5000, 1);
    owner_must(b, OWNER_RELEASE, 0, 0, 0, "");
    assert_key_refused(b, &key, WEIR_ERR_NOT_FOUND);
}

/* Region `region` of the owner, and where this process maps it. */
static weir_remote_region *import_region(bench *b, uint32_t region, uint32_t seed,
                                         uint8_t **out_mapped)
{
    weir_remote_region *remote = NULL;
    void *mapped = NULL;
    uint64_t mapped_bytes = 0;
    owner_must(b, OWNER_SEAL, region, 0, seed, "v1");
    assert_ok(b->ops->import(b->peer, b->owner->reply.blob, b->owner->reply.blob_bytes, &remote));
    assert_ok(b->ops->map(remote, &mapped, &mapped_bytes));
    *out_mapped = mapped;
    return remote;
}

static void assert_region(bench *b, weir_remote_region *remote, uint64_t n_bytes, uint32_t seed)
{
    weir_copy copy = { remote, 0, b->local, n_bytes };
    assert_ok(read_copies(b, &copy, 1, WAIT_MS));
    look(b, 0, n_bytes);
    assert_int_equal(owner_compare(b->data, 0, n_bytes, seed), n_bytes);
}

static void parts_of_one_allocation_share_one_mapping(void **state)
{
    bench *b = bench_of(state);
    uint8_t *whole, *first, *second;
    share(b, OWNER_EXPOSE, 10 * MIB, 1);
    owner_must(b, OWNER_EXPOSE_PART, 1, 8192, 4096, "");
    owner_must(b, OWNER_EXPOSE_PART, 2, 100, 5 * MIB + 1, "");
    weir_remote_region *one = import_region(b, 0, 1, &whole);
    weir_remote_region *two = import_region(b, 1, 2, &first);
    weir_remote_region *three = import_region(b, 2, 3, &second);
    assert_ptr_equal(first, whole + 4096);
    assert_ptr_equal(second, whole + 5 * MIB + 1);
    b->ops->forget(one);
    b->ops->forget(b->remote);
    b->remote = NULL;
    assert_region(b, two, 8192, 2);
    b->ops->forget(two);
    assert_region(b, three, 100, 3);
    b->ops->forget(three);
    one = import_region(b, 0, 4, &whole); /* and it can be mapped anew */
    assert_region(b, one, 10 * MIB, 4);
    b->ops->forget(one);
}

static void a_part_may_span_pieces(void **state)
{
    bench *b = bench_of(state);
    const uint64_t parts[][2] = { { 6 * MIB + 3, 7 * MIB },
                                  { 4 * MIB - 1, 2 },
                                  { 8 * MIB, 4 * MIB },
                                  { 16 * MIB, 4 * MIB - 1 },
                                  { 0, 20 * MIB } };
    uint8_t *mapped;
    share(b, OWNER_EXPOSE, 20 * MIB, 1);
    for (uint32_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        owner_must(b, OWNER_EXPOSE_PART, i + 1, parts[i][1], (uint32_t)parts[i][0], "");
        weir_remote_region *remote = import_region(b, i + 1, i + 2, &mapped);
        assert_region(b, remote, parts[i][1], i + 2);
        b->ops->forget(remote);
    }
}

static void assert_not_exposed(bench *b, const char *how, const char *words)
{
    memory_place place = place_of(how);
    void *data = NULL;
    weir_region *region = NULL;
    char range[64];
    assert_ok(place_allocate(&place, 3 * MIB, &data));
    assert_int_equal(b->ops->expose(b->transport, data, 3 * MIB, &region), WEIR_ERR_UNSUPPORTED);
    snprintf(range, sizeof(range), "%llu bytes", (unsigned long long)(3 * MIB));
    assert_non_null(strstr(weir_last_error(), range));
    assert_non_null(strstr(weir_last_error(), words));
    assert_null(region);
    place_free(&place, data, 3 * MIB);
}

static void memory_that_cannot_be_shared_is_refused_with_the_setting(void **state)
{
    bench *b = bench_of(state);
    assert_not_exposed(b, "host", "host memory");
    assert_not_exposed(b, "pinned", "host memory");
    assert_not_exposed(b, "private 0", "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False");
}

static void a_range_beyond_its_allocation_is_refused(void **state)
{
    bench *b = bench_of(state);
    static const char *const places[] = { "malloc 0", "shareable 0" };
    for (size_t i = 0; i < 2; i++) {
        memory_place place = place_of(places[i]);
        void *data = NULL;
        weir_region *region = NULL;
        assert_ok(place_allocate(&place, 4 * MIB, &data));
        assert_int_equal(b->ops->expose(b->transport, data, (uint64_t)1 << 40, &region),
                         WEIR_ERR_INVALID);
        assert_null(region);
        place_free(&place, data, 4 * MIB);
    }
}

/* ---- this process ----------------------------------------------------------------------------*/

static void read_own_region(bench *b, const char *how, unsigned device)
{
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    memory_place place = place_of(how);
    weir_transport *own = NULL;
    weir_region *region = NULL;
    weir_remote_region *remote = NULL;
    weir_peer *peer = NULL;
    void *data = NULL, *mapped = NULL;
    uint64_t mapped_bytes = 0;
    const void *bytes;
    size_t n_bytes;
    options.device = device;
    assert_ok(place_allocate(&place, MIB, &data));
    owner_fill(b->data, MIB, 9);
    assert_ok(place_copy(&place, data, b->data, MIB));
    assert_ok(b->ops->expose(b->transport, data, MIB, &region));
    assert_ok(b->ops->seal(region, NULL));
    assert_ok(b->ops->open(&options, &own));
    assert_ok(b->ops->address(b->transport, &bytes, &n_bytes));
    assert_ok(b->ops->connect(own, bytes, n_bytes, "ourselves", 1000, &peer));
    assert_ok(b->ops->region_key(region, &bytes, &n_bytes));
    assert_ok(b->ops->import(peer, bytes, n_bytes, &remote));
    assert_ok(b->ops->map(remote, &mapped, &mapped_bytes));
    assert_ptr_equal(mapped, data);
    assert_int_equal(mapped_bytes, MIB);
    memset(b->data, 0, MIB);
    weir_copy copy = { remote, 0, b->data, MIB };
    weir_transfer *transfer = NULL;
    assert_ok(b->ops->post(peer, &copy, 1, &transfer));
    assert_ok(weir_transfer_wait(transfer, WAIT_MS));
    b->ops->finish(transfer);
    assert_int_equal(owner_compare(b->data, 0, MIB, 9), MIB);
    assert_ok(weir_cuda_fill(device, mapped, 5, 1, NULL)); /* by a kernel of the reading GPU */
    assert_ok(weir_cuda_stream_wait(device, NULL));
    assert_ok(place_copy(&place, b->data, data, 1));
    assert_int_equal(b->data[0], 5);
    b->ops->forget(remote);
    b->ops->disconnect(peer);
    b->ops->close(own);
    b->ops->release(region);
    place_free(&place, data, MIB);
}

static void the_owner_may_be_this_process(void **state)
{
    bench *b = bench_of(state);
    read_own_region(b, "malloc 0", 0);
    read_own_region(b, "shareable 0", 0);
    read_own_region(b, "pieces 0", 0);
}

static void the_owner_may_be_this_process_on_another_gpu(void **state)
{
    bench *b = bench_of(state);
    read_own_region(b, "malloc 0", 1);
    read_own_region(b, "shareable 0", 1);
    read_own_region(b, "pieces 0", 1);
}

static void the_current_device_stays(void **state)
{
    bench *b = bench_of(state);
    const weir_cuda_runtime *cuda;
    weir_region *region = NULL;
    int previous, now = -1;
    assert_ok(weir_cuda_runtime_get(&cuda));
    assert_int_equal(cuda->enter(1, &previous), 0);
    share(b, OWNER_EXPOSE, 5 * MIB, 1);
    assert_reads(b, 0, 5 * MIB, 1);
    b->ops->forget(b->remote);
    b->remote = NULL;
    assert_ok(b->ops->allocate(b->transport, MIB, &region));
    b->ops->release(region);
    assert_int_equal(cuda->current_device(&now), 0);
    assert_int_equal(now, 1);
    cuda->leave(previous);
}

/* ---- life and death --------------------------------------------------------------------------*/

static void a_stopped_owner_is_asked_in_vain_and_may_come_back(void **state)
{
    bench *b = bench_of(state);
    owner_must(b, OWNER_EXPOSE, 0, MIB, 0, "");
    seal(b, 1, "v1");
    ask_address(b);
    assert_ok(
        b->ops->connect(b->transport, b->address, b->address_bytes, "owner 0", 300, &b->peer));
    kill(b->owner->pid, SIGSTOP);
    assert_int_equal(waitpid(b->owner->pid, NULL, WUNTRACED),
                     b->owner->pid); /* it takes a moment */
    double start = weir_now_s();
    assert_int_equal(b->ops->import(b->peer, b->key, b->key_bytes, &b->remote), WEIR_ERR_TIMED_OUT);
    assert_string_equal(weir_last_error(), "owner 0: no answer for 0.3 s");
    weir_peer *second = NULL;
    assert_int_equal(
        b->ops->connect(b->transport, b->address, b->address_bytes, "owner 0", 300, &second),
        WEIR_ERR_TIMED_OUT);
    assert_true(weir_now_s() - start < 2.0);
    kill(b->owner->pid, SIGCONT);
    weir_sleep_ms(50); /* the late answer comes, and is passed over */
    assert_ok(b->ops->import(b->peer, b->key, b->key_bytes, &b->remote));
    assert_reads(b, 0, MIB, 1);
}

static void a_dead_owner_leaves_nothing_that_cannot_be_closed(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_EXPOSE, 8 * MIB, 1);
    void *mapped = NULL;
    uint64_t mapped_bytes = 0;
    owner_kill(b->owner);
    owner_reap(b->owner);
    assert_int_equal(b->ops->map(b->remote, &mapped, &mapped_bytes), WEIR_ERR_PEER_LOST);
    weir_copy copy = { b->remote, 0, b->local, MIB };
    assert_int_equal(read_copies(b, &copy, 1, WAIT_MS), WEIR_ERR_PEER_LOST);
    weir_remote_region *again = NULL;
    assert_int_equal(b->ops->import(b->peer, b->key, b->key_bytes, &again), WEIR_ERR_PEER_LOST);
    b->ops->forget(b->remote);
    b->remote = NULL;
    b->ops->disconnect(b->peer);
    b->peer = NULL;
    read_own_region(b, "malloc 0", 0); /* and CUDA is as good as before */
}

static void a_child_of_the_owner_does_not_hide_its_death(void **state)
{
    bench *b = bench_of(state);
    pid_t child;
    void *mapped = NULL;
    uint64_t mapped_bytes = 0;
    share(b, OWNER_EXPOSE, 5000, 1);
    owner_must(b, OWNER_FORK, 0, 0, 0, "");
    memcpy(&child, b->owner->reply.blob, sizeof(child));
    owner_kill(b->owner);
    owner_reap(b->owner);
    weir_status status = b->ops->map(b->remote, &mapped, &mapped_bytes);
    kill(child, SIGKILL);
    assert_int_equal(status, WEIR_ERR_PEER_LOST);
}

static void a_closed_transport_is_a_lost_peer(void **state)
{
    bench *b = bench_of(state);
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    weir_transport *own = NULL;
    const void *bytes;
    size_t n_bytes;
    assert_ok(b->ops->open(&options, &own));
    assert_ok(b->ops->address(own, &bytes, &n_bytes));
    assert_ok(b->ops->connect(b->transport, bytes, n_bytes, "other", 1000, &b->peer));
    b->ops->close(own);
    weir_transfer *transfer = NULL;
    assert_int_equal(b->ops->post(b->peer, NULL, 0, &transfer), WEIR_ERR_PEER_LOST);
    assert_non_null(strstr(weir_last_error(), "other: peer went away"));
}

static void a_reader_that_dies_harms_nobody(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_EXPOSE, LARGE, 5);
    for (int i = 0; i < 3; i++) {
        owner *reader = owner_open(b->setting->transport, b->setting->tls, b->directory);
        owner_request *request = calloc(1, sizeof(*request));
        request->op = OWNER_READ;
        request->seed = 5;
        request->n_bytes = LARGE;
        request->address_bytes = (uint32_t)b->address_bytes;
        request->blob_bytes = (uint32_t)(b->address_bytes + b->key_bytes);
        memcpy(request->blob, b->address, b->address_bytes);
        memcpy(request->blob + b->address_bytes, b->key, b->key_bytes);
        owner_send(reader, request);
        weir_sleep_ms((unsigned)i * 150);
        owner_kill(reader);
        owner_reap(reader);
        owner_close(reader);
        free(request);
        assert_reads(b, 0, LARGE, 5);
        owner_must(b, OWNER_COMPARE, 0, 0, 5, "");
    }
}

/* ---- strangers -------------------------------------------------------------------------------*/

static int knock(bench *b)
{
    weir_cuda_ipc_address address;
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    ask_address(b);
    assert_ok(weir_cuda_ipc_address_decode(b->address, b->address_bytes, "x", &address));
    size_t n = strlen(address.socket);
    memcpy(at.sun_path + 1, address.socket, n);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&at,
                             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)),
                     0);
    return fd;
}

static void strangers_at_the_socket_are_let_go(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_EXPOSE, 5000, 1);
    uint8_t junk[300] = { 1, 2, 3 };
    for (size_t n = 1; n <= sizeof(junk); n = n * 3 + 1) {
        int fd = knock(b);
        if (n == sizeof(cuda_ipc_request))
            continue;
        assert_int_equal(send(fd, junk, n, MSG_NOSIGNAL), n);
        assert_int_equal(recv(fd, junk, 1, 0), 0); /* the end */
        close(fd);
    }
    int fd = knock(b);
    cuda_ipc_request request = { .magic = 7, .ask = CUDA_IPC_HELLO, .number = 3 };
    cuda_ipc_answer answer = { 0 };
    assert_int_equal(send(fd, &request, sizeof(request), MSG_NOSIGNAL), sizeof(request));
    assert_int_equal(recv(fd, &answer, sizeof(answer), 0), sizeof(answer));
    assert_int_equal(answer.status, WEIR_ERR_UNSUPPORTED);
    assert_int_equal(answer.number, 3);
    request = (cuda_ipc_request){
        .magic = WEIR_CUDA_IPC_MAGIC, .ask = CUDA_IPC_PIECE, .region = 1, .at = UINT64_MAX
    };
    assert_int_equal(send(fd, &request, sizeof(request), MSG_NOSIGNAL), sizeof(request));
    assert_int_equal(recv(fd, &answer, sizeof(answer), 0), sizeof(answer));
    assert_int_equal(answer.status, WEIR_ERR_INVALID);
    close(fd);
    assert_reads(b, 0, 5000, 1);
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
        CASE(a_peer_on_another_host_is_refused_by_name, handles),
        CASE(forged_and_outdated_keys_are_refused, handles),
        CASE(forged_and_outdated_keys_are_refused, shareable),
        CASE(parts_of_one_allocation_share_one_mapping, handles),
        CASE(parts_of_one_allocation_share_one_mapping, shareable),
        CASE(a_part_may_span_pieces, pieces),
        CASE(memory_that_cannot_be_shared_is_refused_with_the_setting, handles),
        CASE(a_range_beyond_its_allocation_is_refused, handles),
        CASE(the_owner_may_be_this_process, handles),
        CASE(the_owner_may_be_this_process_on_another_gpu, two_gpus),
        CASE(the_current_device_stays, two_gpus),
        CASE(a_stopped_owner_is_asked_in_vain_and_may_come_back, handles),
        CASE(a_dead_owner_leaves_nothing_that_cannot_be_closed, handles),
        CASE(a_dead_owner_leaves_nothing_that_cannot_be_closed, shareable),
        CASE(a_dead_owner_leaves_nothing_that_cannot_be_closed, pieces),
        CASE(a_child_of_the_owner_does_not_hide_its_death, handles),
        CASE(a_closed_transport_is_a_lost_peer, handles),
        CASE(a_reader_that_dies_harms_nobody, handles),
        CASE(a_reader_that_dies_harms_nobody, shareable),
        CASE(strangers_at_the_socket_are_let_go, handles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
