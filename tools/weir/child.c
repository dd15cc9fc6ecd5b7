/* SPDX-License-Identifier: Apache-2.0 */
/* child.c - fork, exec, pipes and deadlines. */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define END_PATIENCE_S 2.0

void weir_arguments_add(weir_arguments *arguments, const char *option, const char *value)
{
    if (value == NULL || arguments->n + 3 > WEIR_CHILD_MAX_ARGUMENTS)
        return;
    if (option != NULL)
        arguments->items[arguments->n++] = (char *)(uintptr_t)option;
    arguments->items[arguments->n++] = (char *)(uintptr_t)value;
    arguments->items[arguments->n] = NULL;
}

static void sleep_ms(long ms)
{
    struct timespec t = { ms / 1000, ms % 1000 * 1000000L };
    nanosleep(&t, NULL);
}

/* In the child, after fork: nothing but async-signal-safe calls. */
static void run_self(char *const *argv, const int in[2], const int out[2], pid_t parent)
{
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(127); /* it died before the line above */
    signal(SIGPIPE, SIG_DFL);
    execv("/proc/self/exe", argv);
    _exit(127);
}

bool weir_child_start(weir_child *child, const char *name, char *const *argv)
{
    int in[2], out[2];
    child->pid = 0;
    child->in = child->out = -1;
    child->n_buffered = 0;
    snprintf(child->name, sizeof(child->name), "%s", name);
    if (pipe2(in, O_CLOEXEC) != 0)
        return weir_cli_error("%s: no pipe: %s", name, strerror(errno)), false;
    if (pipe2(out, O_CLOEXEC) != 0) {
        weir_cli_error("%s: no pipe: %s", name, strerror(errno));
        close(in[0]), close(in[1]);
        return false;
    }
    pid_t parent = getpid();
    fflush(NULL);
    child->pid = fork();
    if (child->pid == 0)
        run_self(argv, in, out, parent);
    close(in[0]), close(out[1]);
    child->in = in[1];
    child->out = out[0];
    if (child->pid > 0)
        return true;
    weir_cli_error("%s: cannot fork: %s", name, strerror(errno));
    child->pid = 0;
    weir_child_end(child);
    return false;
}

bool weir_child_runs(const weir_child *child)
{
    siginfo_t ended = { .si_pid = 0 };
    return child->pid > 0 &&
           waitid(P_PID, (id_t)child->pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           ended.si_pid == 0;
}

bool weir_child_send(weir_child *child, const char *line)
{
    size_t n = strlen(line);
    char text[4096];
    if (n + 2 > sizeof(text))
        return weir_cli_error("%s: line of %zu characters", child->name, n), false;
    memcpy(text, line, n);
    text[n] = '\n';
    if (write(child->in, text, n + 1) == (ssize_t)(n + 1))
        return true;
    return weir_cli_error("%s is gone: %s", child->name, strerror(errno)), false;
}

static bool take_line(weir_child *child, char *line)
{
    char *end = memchr(child->buffer, '\n', child->n_buffered);
    if (end == NULL)
        return false;
    size_t n = (size_t)(end - child->buffer);
    memcpy(line, child->buffer, n);
    line[n] = '\0';
    child->n_buffered -= n + 1;
    memmove(child->buffer, end + 1, child->n_buffered);
    return true;
}

bool weir_child_read_line(weir_child *child, double timeout_s, char line[WEIR_CHILD_LINE_BYTES])
{
    double until = weir_cli_now() + timeout_s;
    while (!take_line(child, line)) {
        double left_s = until - weir_cli_now();
        struct pollfd ready = { child->out, POLLIN, 0 };
        if (left_s <= 0)
            return weir_cli_error("%s said nothing for %.0f s", child->name, timeout_s), false;
        if (poll(&ready, 1, left_s < 0.2 ? (int)(left_s * 1000) + 1 : 200) <= 0) {
            if (weir_cli_stopped())
                return weir_cli_error("stopped while waiting for %s", child->name), false;
            continue;
        }
        size_t room = sizeof(child->buffer) - child->n_buffered;
        ssize_t n = room > 0 ? read(child->out, child->buffer + child->n_buffered, room) : 0;
        if (n <= 0)
            return weir_cli_error("%s has ended", child->name), false;
        child->n_buffered += (size_t)n;
    }
    return true;
}

json_t *weir_child_read_json(weir_child *child, double timeout_s)
{
    static char line[WEIR_CHILD_LINE_BYTES];
    json_error_t error;
    if (!weir_child_read_line(child, timeout_s, line))
        return NULL;
    json_t *object = json_loads(line, 0, &error);
    if (object == NULL)
        weir_cli_error("%s said '%.80s', no JSON: %s", child->name, line, error.text);
    return object;
}

static int exit_code_of(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* -1 while it runs. */
static int wait_for(weir_child *child, double timeout_s)
{
    int status;
    double until = weir_cli_now() + timeout_s;
    for (;;) {
        pid_t ended = waitpid(child->pid, &status, WNOHANG);
        if (ended == child->pid)
            return exit_code_of(status);
        if ((ended < 0 && errno != EINTR) || weir_cli_now() > until)
            return -1;
        sleep_ms(5);
    }
}

int weir_child_end(weir_child *child)
{
    int code = -1;
    if (child->in >= 0)
        close(child->in);
    child->in = -1;
    if (child->pid > 0) {
        kill(child->pid, SIGTERM);
        code = wait_for(child, END_PATIENCE_S);
        if (code < 0) {
            kill(child->pid, SIGKILL);
            code = wait_for(child, END_PATIENCE_S);
        }
    }
    if (child->out >= 0)
        close(child->out);
    child->out = -1;
    child->pid = 0;
    return code;
}

json_t *weir_child_run_json(const char *name, char *const *argv, double timeout_s, int *out_code)
{
    static weir_child child;
    static char text[WEIR_CHILD_LINE_BYTES], line[WEIR_CHILD_LINE_BYTES];
    size_t used = 0;
    json_t *object = NULL;
    *out_code = -1;
    if (!weir_child_start(&child, name, argv))
        return NULL;
    close(child.in);
    child.in = -1;
    /* The object may be printed over several lines: collect until it parses. */
    while (object == NULL && weir_child_read_line(&child, timeout_s, line)) {
        int n = snprintf(text + used, sizeof(text) - used, "%s\n", line);
        used += (size_t)n;
        if (used >= sizeof(text))
            break;
        object = json_loads(text, 0, NULL);
    }
    *out_code = object != NULL ? wait_for(&child, timeout_s) : -1;
    if (*out_code >= 0)
        child.pid = 0;
    int ended = weir_child_end(&child);
    if (*out_code < 0)
        *out_code = ended;
    return object;
}
