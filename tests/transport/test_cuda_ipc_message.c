/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_ipc_message.c - messages and descriptors over a socket pair; needs no GPU. */
#include "transport/cuda_ipc_message.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

static int fds[2];

static int open_pair(void **state)
{
    (void)state;
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds);
}

static int close_pair(void **state)
{
    (void)state;
    close(fds[0]);
    close(fds[1]);
    return 0;
}

static unsigned open_fds(void)
{
    unsigned n = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (readdir(directory) != NULL)
        n++;
    closedir(directory);
    return n;
}

static void a_message_goes_across_with_its_descriptor(void **state)
{
    (void)state;
    cuda_ipc_request in = { WEIR_CUDA_IPC_MAGIC, CUDA_IPC_PIECE, 4, 5, 6 }, out;
    int fd, passed[2];
    char byte = 'x';
    assert_int_equal(weir_cuda_ipc_receive(fds[1], &out, sizeof(out), &fd), CUDA_IPC_NOTHING);
    assert_true(weir_cuda_ipc_send(fds[0], &in, sizeof(in), -1));
    assert_int_equal(weir_cuda_ipc_receive(fds[1], &out, sizeof(out), &fd), CUDA_IPC_MESSAGE);
    assert_memory_equal(&in, &out, sizeof(in));
    assert_int_equal(fd, -1);
    assert_int_equal(pipe(passed), 0);
    assert_true(weir_cuda_ipc_send(fds[0], &in, sizeof(in), passed[1]));
    close(passed[1]);
    assert_int_equal(weir_cuda_ipc_receive(fds[1], &out, sizeof(out), &fd), CUDA_IPC_MESSAGE);
    assert_true(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_int_equal(write(fd, &byte, 1), 1);
    assert_int_equal(read(passed[0], &byte, 1), 1);
    close(fd);
    close(passed[0]);
}

static void a_message_of_another_length_is_the_end(void **state)
{
    (void)state;
    char bytes[100] = { 0 };
    cuda_ipc_request out;
    int fd;
    const size_t lengths[] = { 1, sizeof(out) - 1, sizeof(out) + 1, sizeof(bytes) };
    unsigned before = open_fds();
    for (size_t i = 0; i < 4; i++) {
        assert_true(weir_cuda_ipc_send(fds[0], bytes, lengths[i], STDIN_FILENO));
        assert_int_equal(weir_cuda_ipc_receive(fds[1], &out, sizeof(out), &fd), CUDA_IPC_END);
        assert_int_equal(fd, -1);
    }
    assert_int_equal(open_fds(), before); /* what came along is closed */
}

static void descriptors_that_nobody_asked_for_are_closed(void **state)
{
    (void)state;
    enum { N = 20 };
    cuda_ipc_request in = { 0 }, out;
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(N * sizeof(int))];
    } control = { 0 };
    struct iovec part = { &in, sizeof(in) };
    struct msghdr header = { .msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.room,
                             .msg_controllen = sizeof(control.room) };
    struct cmsghdr *item = CMSG_FIRSTHDR(&header);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(N * sizeof(int));
    int passed[N] = { 0 }, fd;
    memcpy(CMSG_DATA(item), passed, sizeof(passed));
    unsigned before = open_fds();
    assert_int_equal(sendmsg(fds[0], &header, 0), sizeof(in));
    assert_int_equal(weir_cuda_ipc_receive(fds[1], &out, sizeof(out), &fd), CUDA_IPC_MESSAGE);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(open_fds(), before);
}

static void a_full_or_closed_socket_blocks_nobody(void **state)
{
    (void)state;
    cuda_ipc_answer answer = { 0 };
    int fd;
    unsigned n = 0;
    while (weir_cuda_ipc_send(fds[0], &answer, sizeof(answer), -1))
        n++;
    assert_true(n > 0);
    close(fds[0]);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(weir_cuda_ipc_receive(fds[1], &answer, sizeof(answer), &fd),
                         CUDA_IPC_MESSAGE);
    assert_int_equal(weir_cuda_ipc_receive(fds[1], &answer, sizeof(answer), &fd), CUDA_IPC_END);
    assert_false(weir_cuda_ipc_send(fds[1], &answer, sizeof(answer), -1));
    fds[0] = dup(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_message_goes_across_with_its_descriptor, open_pair,
                                        close_pair),
        cmocka_unit_test_setup_teardown(a_message_of_another_length_is_the_end, open_pair,
                                        close_pair),
        cmocka_unit_test_setup_teardown(descriptors_that_nobody_asked_for_are_closed, open_pair,
                                        close_pair),
        cmocka_unit_test_setup_teardown(a_full_or_closed_socket_blocks_nobody, open_pair,
                                        close_pair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
