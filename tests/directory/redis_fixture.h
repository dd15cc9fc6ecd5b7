/* SPDX-License-Identifier: Apache-2.0 */
/* redis_fixture.h - a redis-server of the test's own, and directories whose store is a list.
 *
 * A member applies records by writing their number, time and salt into its list, which is also its
 * snapshot: two members agree when their lists are equal, byte for byte. */
#ifndef WEIR_TEST_REDIS_FIXTURE_H
#define WEIR_TEST_REDIS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "directory/redis_state.h"

/* ---- redis-server ----------------------------------------------------------------------------*/

typedef struct redis_process {
    char folder[64], port[8], url[128];
    const char *fsync;       /* "always", "everysec"; NULL: appendonly no */
    const char *requirepass; /* NULL: none */
    pid_t pid;
} redis_process;

static inline unsigned free_port(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t n = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, n), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &n), 0);
    close(fd);
    return ntohs(address.sin_port);
}

static inline void redis_exec(const redis_process *redis)
{
    char log[96];
    snprintf(log, sizeof(log), "%s/log", redis->folder);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execlp("redis-server", "redis-server", "--port", redis->port, "--bind", "127.0.0.1", "--dir",
           redis->folder, "--save", "", "--appendonly", redis->fsync != NULL ? "yes" : "no",
           "--appendfsync", redis->fsync != NULL ? redis->fsync : "no", "--logfile", log,
           "--requirepass", redis->requirepass != NULL ? redis->requirepass : "", (char *)NULL);
    _exit(127);
}

/* Ready, or the test fails. */
static inline redisContext *redis_talk(const redis_process *redis)
{
    weir_deadline deadline = weir_deadline_in(20000);
    while (!weir_deadline_passed(deadline)) {
        redisContext *context = redisConnect("127.0.0.1", atoi(redis->port));
        if (context != NULL && context->err == 0) {
            redisReply *reply = redis->requirepass != NULL
                                    ? redisCommand(context, "AUTH %s", redis->requirepass)
                                    : redisCommand(context, "PING");
            bool is_ready = reply != NULL && reply->type == REDIS_REPLY_STATUS;
            freeReplyObject(reply);
            if (is_ready)
                return context;
        }
        redisFree(context);
        weir_sleep_ms(5); /* nothing tells when a server listens but trying */
    }
    fail_msg("redis-server does not answer; see %s/log", redis->folder);
    return NULL;
}

static inline void redis_start(redis_process *redis)
{
    redis->pid = fork();
    assert_true(redis->pid >= 0);
    if (redis->pid == 0)
        redis_exec(redis);
    redisFree(redis_talk(redis));
}

static inline void redis_begin(redis_process *redis, const char *fsync, const char *requirepass)
{
    memset(redis, 0, sizeof(*redis));
    snprintf(redis->folder, sizeof(redis->folder), "/tmp/weir_redis_XXXXXX");
    assert_non_null(mkdtemp(redis->folder));
    redis->fsync = fsync;
    redis->requirepass = requirepass;
    snprintf(redis->port, sizeof(redis->port), "%u", free_port());
    snprintf(redis->url, sizeof(redis->url), "redis://127.0.0.1:%s", redis->port);
    redis_start(redis);
}

static inline void redis_kill(redis_process *redis)
{
    kill(redis->pid, SIGKILL);
    waitpid(redis->pid, NULL, 0);
    redis->pid = 0;
}

static inline void redis_end(redis_process *redis)
{
    char command[128];
    if (redis->pid > 0)
        redis_kill(redis);
    snprintf(command, sizeof(command), "rm -rf %s", redis->folder);
    assert_int_equal(system(command), 0);
}

/* One command; its answer as a number, or that of its array's or text's length. */
static inline long long redis_do(const redis_process *redis, const char *format, ...)
{
    redisContext *context = redis_talk(redis);
    va_list args;
    va_start(args, format);
    redisReply *reply = redisvCommand(context, format, args);
    va_end(args);
    assert_non_null(reply);
    if (reply->type == REDIS_REPLY_ERROR)
        fail_msg("%s", reply->str);
    long long answer = reply->type == REDIS_REPLY_INTEGER ? reply->integer
                       : reply->type == REDIS_REPLY_ARRAY ? (long long)reply->elements
                                                          : (long long)reply->len;
    freeReplyObject(reply);
    redisFree(context);
    return answer;
}

/* ---- a directory -----------------------------------------------------------------------------*/

typedef struct applied_record {
    uint64_t number, time_ms, salt;
} applied_record;

enum { TICKETS = 65536 };
typedef enum ticket_fate { UNKNOWN, APPLIED, LOST } ticket_fate;

typedef struct member {
    weir_directory_log *log;
    weir_redis_poll loop;
    applied_record *all;
    size_t n, room;
    unsigned n_loads, n_lost;
    uint64_t n_tickets, read_ticket, read_ms, load_status;
    unsigned char fates[TICKETS];
    char text[WEIR_ERROR_TEXT];
} member;

#define REDIS_TRACE "4bf92f3577b34da6a3ce929d0e0e4736" /* of every other record */

/* The bytes of record `number`: as many as the number says, and none that text could not hold. */
static inline size_t record_bytes(uint64_t number, unsigned char *out, size_t n_out)
{
    size_t n = 8 + (size_t)(number * 2654435761u % (n_out - 8));
    memcpy(out, &number, 8);
    for (size_t i = 8; i < n; i++)
        out[i] = (unsigned char)(number * 31 + i * 7);
    return n;
}

static inline void member_apply(void *context, const weir_log_record *record, uint64_t now_ms,
                                uint64_t ticket)
{
    member *self = context;
    unsigned char expected[4096];
    uint64_t number;
    assert_true(record->n_bytes >= 8);
    memcpy(&number, record->bytes, 8);
    assert_int_equal(record_bytes(number, expected, sizeof(expected)), record->n_bytes);
    assert_memory_equal(record->bytes, expected, record->n_bytes);
    assert_string_equal(record->method, "Service.Method");
    assert_string_equal(record->trace_id, number % 2 != 0 ? REDIS_TRACE : "");
    if (self->n > 0)
        assert_true(now_ms >= self->all[self->n - 1].time_ms);
    if (self->n == self->room) {
        self->room = self->room != 0 ? self->room * 2 : 1024;
        self->all = realloc(self->all, self->room * sizeof(*self->all));
        assert_non_null(self->all);
    }
    self->all[self->n++] = (applied_record){ number, now_ms, record->salt };
    assert_true(ticket < TICKETS);
    self->fates[ticket] = APPLIED;
}

static inline void member_lost(void *context, uint64_t ticket, const char *text)
{
    member *self = context;
    assert_true(ticket != 0 && ticket < TICKETS);
    assert_int_equal(self->fates[ticket], UNKNOWN);
    self->fates[ticket] = LOST;
    self->n_lost++;
    snprintf(self->text, sizeof(self->text), "%s", text);
}

static inline weir_status member_load(void *context, const unsigned char *bytes, size_t n)
{
    member *self = context;
    assert_int_equal(n % sizeof(applied_record), 0);
    self->n_loads++;
    self->n = self->room = n / sizeof(applied_record);
    free(self->all);
    self->all = malloc(n + 1);
    assert_non_null(self->all);
    if (n > 0)
        memcpy(self->all, bytes, n);
    return WEIR_OK;
}

static inline weir_status member_save(void *context, unsigned char **out, size_t *out_n)
{
    const member *self = context;
    *out_n = self->n * sizeof(applied_record);
    *out = weir_alloc(*out_n);
    if (*out == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (*out_n > 0)
        memcpy(*out, self->all, *out_n);
    return WEIR_OK;
}

static inline weir_status member_open(member *self, const weir_redis_log_options *options)
{
    memset(self, 0, sizeof(*self));
    weir_log_reader reader = { member_apply, member_lost, member_load, member_save, self };
    weir_redis_events events;
    weir_redis_poll_init(&self->loop, &events);
    weir_status status = weir_redis_log_open(options, &reader, &self->log);
    return status == WEIR_OK ? weir_redis_log_watch(self->log, &events) : status;
}

static inline void member_begin(member *self, const redis_process *redis, unsigned snapshot_every)
{
    weir_redis_log_options options = { .url = redis->url,
                                       .name = "test",
                                       .snapshot_every = snapshot_every };
    if (member_open(self, &options) != WEIR_OK)
        fail_msg("%s", weir_last_error());
}

static inline void member_end(member *self)
{
    if (self->log != NULL)
        self->log->ops->close(self->log);
    free(self->all);
    memset(self, 0, sizeof(*self));
}

/* Gives the ticket, or 0 when it was refused at once. */
static inline uint64_t member_append(member *self, uint64_t number)
{
    unsigned char bytes[4096];
    size_t n = record_bytes(number, bytes, sizeof(bytes));
    weir_log_record record = { .method = "Service.Method",
                               .bytes = bytes,
                               .n_bytes = n,
                               .salt = number * 0x9E3779B97F4A7C15u,
                               .trace_id = number % 2 != 0 ? REDIS_TRACE : NULL };
    uint64_t ticket = ++self->n_tickets;
    assert_true(ticket < TICKETS);
    return self->log->ops->append(self->log, &record, ticket) == WEIR_OK ? ticket : 0;
}

static inline void member_drive(member *self)
{
    weir_redis_poll_once(&self->loop, 2);
    self->log->ops->tick(self->log);
}

static inline bool member_is_done(const member *self, uint64_t ticket)
{
    return self->fates[ticket] != UNKNOWN;
}

#define DRIVE_UNTIL(condition, ...)                                            \
    do {                                                                       \
        member *const driven[] = { __VA_ARGS__ };                              \
        weir_deadline deadline_ = weir_deadline_in(20000);                     \
        while (!(condition)) {                                                 \
            for (size_t i_ = 0; i_ < sizeof(driven) / sizeof(driven[0]); i_++) \
                member_drive(driven[i_]);                                      \
            if (weir_deadline_passed(deadline_))                               \
                fail_msg("waited in vain for: %s", #condition);                \
        }                                                                      \
    } while (0)

static inline void member_read_done(void *context, uint64_t ticket, uint64_t now_ms)
{
    member *self = context;
    self->read_ticket = ticket;
    self->read_ms = now_ms;
}

/* All that is in the log is applied here when this returns. */
static inline void member_catch_up(member *self)
{
    uint64_t ticket = ++self->n_tickets;
    weir_status status = WEIR_ERR_PEER_LOST;
    while (self->read_ticket != ticket) {
        if (status != WEIR_OK || self->fates[ticket] == LOST) {
            self->fates[ticket] = UNKNOWN;
            status = self->log->ops->catch_up(self->log, ticket, member_read_done, self);
        }
        member_drive(self);
    }
}

static inline bool members_agree(const member *a, const member *b)
{
    return a->n == b->n && memcmp(a->all, b->all, a->n * sizeof(applied_record)) == 0;
}

static inline bool member_has(const member *self, uint64_t number)
{
    for (size_t i = self->n; i > 0; i--) {
        if (self->all[i - 1].number == number)
            return true;
    }
    return false;
}

#endif
