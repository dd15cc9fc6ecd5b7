/* SPDX-License-Identifier: Apache-2.0 */
/* nccl_ranks.h - the ranks of a broadcast group as processes of their own.
 *
 * A test program starts itself again (fork and exec: no CUDA context survives a fork) as
 * "PROGRAM rank SCENARIO RANK RANKS", with a socket to the parent as descriptor 3. Rank 0 tells its
 * group's key, the parent passes it on. Nothing here waits without a bound.
 */
#ifndef WEIR_TESTS_NCCL_RANKS_H
#define WEIR_TESTS_NCCL_RANKS_H

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "weir/transport.h"

#define RANK_FD 3
#define MAX_RANKS 8
#define RANK_BOUND_MS 90000u

typedef struct rank_process {
    pid_t pid;
    int fd;
    int status; /* as of waitpid(), once ended */
    bool ended;
} rank_process;

/* The libraries that ranks use: what was in the environment when the tests began. */
static const char *real_cuda, *real_nccl;

static inline void set_or_unset(const char *name, const char *value)
{
    if (value != NULL)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static inline bool rank_start(rank_process *process, const char *scenario, unsigned rank,
                              unsigned n_ranks)
{
    int fds[2];
    char rank_text[16], ranks_text[16];
    snprintf(rank_text, sizeof(rank_text), "%u", rank);
    snprintf(ranks_text, sizeof(ranks_text), "%u", n_ranks);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return false;
    *process = (rank_process){ .pid = fork(), .fd = fds[0] };
    if (process->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        set_or_unset("WEIR_CUDA_LIBRARY", real_cuda);
        set_or_unset("WEIR_NCCL_LIBRARY", real_nccl);
        if (fds[1] == RANK_FD) /* dup2() onto itself would leave it to be closed */
            fds[1] = dup(fds[1]);
        dup2(fds[1], RANK_FD);
        execl("/proc/self/exe", "test_nccl", "rank", scenario, rank_text, ranks_text, NULL);
        _exit(99);
    }
    close(fds[1]);
    return process->pid > 0;
}

static inline bool read_bounded(int fd, void *data, size_t n_bytes, unsigned timeout_ms)
{
    struct pollfd ready = { fd, POLLIN, 0 };
    return poll(&ready, 1, (int)timeout_ms) == 1 &&
           recv(fd, data, n_bytes, MSG_WAITALL) == (ssize_t)n_bytes;
}

static inline void rank_await(rank_process *process, weir_deadline deadline)
{
    while (!process->ended && !weir_deadline_passed(deadline)) {
        process->ended = waitpid(process->pid, &process->status, WNOHANG) == process->pid;
        if (!process->ended)
            weir_sleep_ms(5);
    }
    if (process->ended)
        return;
    fprintf(stderr, "a rank did not end in time\n");
    kill(process->pid, SIGKILL);
    waitpid(process->pid, &process->status, 0);
    process->ended = true;
}

/* Runs a scenario; statuses[i] is 0 when rank i went well, as of waitpid() else. */
static inline bool ranks_run(const char *scenario, unsigned n_processes, unsigned n_ranks,
                             int *statuses)
{
    rank_process processes[MAX_RANKS];
    char key[WEIR_GROUP_KEY_BYTES];
    weir_deadline deadline = weir_deadline_in(RANK_BOUND_MS);
    bool good = true;
    for (unsigned i = 0; i < n_processes; i++)
        good = rank_start(&processes[i], scenario, i, n_ranks) && good;
    if (good && n_processes > 1) {
        good = read_bounded(processes[0].fd, key, sizeof(key), RANK_BOUND_MS);
        for (unsigned i = 1; i < n_processes && good; i++)
            good = send(processes[i].fd, key, sizeof(key), MSG_NOSIGNAL) == sizeof(key);
    }
    for (unsigned i = 0; i < n_processes; i++) {
        if (!good)
            kill(processes[i].pid, SIGKILL);
        rank_await(&processes[i], deadline);
        close(processes[i].fd);
        statuses[i] = processes[i].status;
    }
    return good;
}

/* In the rank: makes or gets the key. */
static inline bool rank_key(const weir_transport_ops *ops, weir_transport *transport, unsigned rank,
                            void *key)
{
    if (rank != 0)
        return read_bounded(RANK_FD, key, WEIR_GROUP_KEY_BYTES, RANK_BOUND_MS);
    return ops->group_key(transport, key) == WEIR_OK &&
           send(RANK_FD, key, WEIR_GROUP_KEY_BYTES, MSG_NOSIGNAL) == WEIR_GROUP_KEY_BYTES;
}

#endif
