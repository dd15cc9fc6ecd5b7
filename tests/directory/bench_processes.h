/* SPDX-License-Identifier: Apache-2.0 */
/* bench_processes.h - the processes of bench_directory: one is the directory, so that its memory
 * and time are its own, and one keeps the connections that this one has no descriptors for. */
#ifndef WEIR_TESTS_BENCH_PROCESSES_H
#define WEIR_TESTS_BENCH_PROCESSES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "weir/weir.h"

#define FDS_PER_CLIENT 2u /* its socket, and what cancels its calls */
#define OTHER_FDS 512u

static void die(const char *what)
{
    fprintf(stderr, "bench_directory: %s: %s\n", what, weir_last_error());
    exit(2);
}

static void must(weir_status status, const char *what)
{
    if (status != WEIR_OK)
        die(what);
}

static void must_be(bool is_so, const char *what)
{
    if (!is_so) {
        perror("bench_directory");
        die(what);
    }
}

static unsigned long take_all_descriptors(void)
{
    struct rlimit limit;
    must_be(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must_be(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
    return limit.rlim_cur;
}

/* Another process, and a socket between it and this one. */
typedef struct bench_process {
    pid_t pid;
    int fd;
} bench_process;

/* `run` is given the other end, and what it returns is the process' end. */
static bench_process start_process(int (*run)(int fd))
{
    int fds[2];
    must_be(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0, "socketpair");
    pid_t pid = fork();
    must_be(pid >= 0, "fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fds[0]);
        exit(run(fds[1]));
    }
    close(fds[1]);
    return (bench_process){ pid, fds[0] };
}

static void end_process(const bench_process *process)
{
    int status = 0;
    close(process->fd);
    waitpid(process->pid, &status, 0);
}

/* Directory process: says where it is, and ends when the other side does. */
static int run_directory(int fd)
{
    weir_directory *directory;
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    char byte;
    options.max_connections = (unsigned)take_all_descriptors();
    must(weir_directory_open(&options, &directory), "directory");
    const char *address = weir_directory_address(directory);
    must_be(write(fd, address, strlen(address) + 1) > 0, "write");
    ssize_t n = read(fd, &byte, 1);
    (void)n; /* the end */
    weir_directory_close(directory);
    return 0;
}

static size_t resident_bytes_of(pid_t pid)
{
    char path[64];
    unsigned long all = 0, resident = 0;
    snprintf(path, sizeof(path), "/proc/%ld/statm", (long)pid);
    FILE *file = fopen(path, "r");
    must_be(file != NULL && fscanf(file, "%lu %lu", &all, &resident) == 2, path);
    fclose(file);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

/* Of its user code and of the kernel on its behalf. */
static double cpu_seconds_of(pid_t pid)
{
    char path[64];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof(path), "/proc/%ld/stat", (long)pid);
    FILE *file = fopen(path, "r");
    must_be(file != NULL && fscanf(file,
                                   "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu "
                                   "%lu",
                                   &user, &system) == 2,
            path);
    fclose(file);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

#endif
