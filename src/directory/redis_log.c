/* SPDX-License-Identifier: Apache-2.0 */
/* redis_log.c - the log of a fleet's directories in Redis: its two connections, and its clock.
 *
 * One connection carries commands, one waits for records (XREAD BLOCK). Either is given up when it
 * says nothing for timeout_ms, though something is asked of it all the time; then both are made
 * anew, for ever, at most every two seconds. Nothing here blocks but opening, which drives the same
 * connections by poll(). The host's name is looked up once, then.
 */
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "directory/redis_state.h"

#define TIMEOUT_MS 5000
#define SNAPSHOT_EVERY 4096
#define PROBE_MS 500
#define FIRST_BACKOFF_MS 50
#define LAST_BACKOFF_MS 2000
#define NAME_MAX_BYTES 64
#define NS_PER_MS ((uint64_t)1000000)

/* ---- the state of its connections ------------------------------------------------------------*/

void weir_redis_log_enter(weir_redis_log *log, weir_redis_phase phase)
{
    log->phase = phase;
    log->phase_ns = weir_now_ns();
}

void weir_redis_log_drop(weir_redis_log *log, unsigned wait_ms, const char *why)
{
    bool was_well = log->trouble[0] == '\0';
    snprintf(log->trouble, sizeof(log->trouble), "%s: %s", log->url.who, why);
    weir_error_one_line(log->trouble);
    if (was_well && !log->is_opening)
        weir_log(WEIR_LOG_WARN, "%s", log->trouble);
    weir_redis_log_enter(log, WEIR_REDIS_DOWN);
    weir_redis_link_close(&log->command);
    weir_redis_link_close(&log->follow);
    weir_redis_snapshot_stop(log);
    log->is_asking = false;
    log->retry_ns = log->phase_ns + wait_ms * NS_PER_MS;
    log->backoff_ms = log->backoff_ms * 2 < LAST_BACKOFF_MS ? log->backoff_ms * 2 : LAST_BACKOFF_MS;
    log->next_address = (log->next_address + 1) % log->n_addresses;
}

void weir_redis_log_doubt(weir_redis_log *log, const char *why)
{
    weir_redis_log_drop(log, log->backoff_ms, why);
    char text[WEIR_ERROR_TEXT];
    snprintf(text, sizeof(text), "%s", log->trouble);
    weir_redis_callers_lose(log, text);
}

void weir_redis_log_bad_answer(weir_redis_log *log, const char *what, const redisReply *reply)
{
    char why[256];
    bool is_error = reply != NULL && reply->type == REDIS_REPLY_ERROR;
    snprintf(why, sizeof(why), "%s: %s", what, is_error ? reply->str : "not the answer expected");
    weir_redis_log_drop(log, log->backoff_ms, why);
}

static void on_down(void *owner, const char *why)
{
    weir_redis_log *log = owner;
    bool is_refused = log->command.refused || log->follow.refused;
    if (is_refused && log->is_opening)
        log->failed = weir_fail(WEIR_ERR_REFUSED, "%s: %s", log->url.who, why);
    weir_redis_log_drop(log, log->backoff_ms, why);
}

/* It owes an answer, and none came. What lies in the socket unread is an answer too, that
 * this process had no time to read. */
static bool is_silent(const weir_redis_log *log, const weir_redis_link *link, uint64_t now_ns)
{
    if (link->context == NULL || link->asked.n_items == 0 ||
        now_ns < link->heard_ns + log->timeout_ms * NS_PER_MS)
        return false;
    struct pollfd fd = { .fd = link->context->c.fd, .events = POLLIN };
    return poll(&fd, 1, 0) <= 0;
}

static void look_after_connections(weir_redis_log *log, uint64_t now_ns)
{
    if (log->phase == WEIR_REDIS_DOWN) {
        if (now_ns >= log->retry_ns)
            weir_redis_follow_begin(log);
        return;
    }
    if (is_silent(log, &log->command, now_ns) || is_silent(log, &log->follow, now_ns)) {
        char why[64];
        snprintf(why, sizeof(why), "no answer for %.1f s", log->timeout_ms / 1e3);
        weir_redis_log_drop(log, log->backoff_ms, why);
        return;
    }
    if (log->phase != WEIR_REDIS_FOLLOWING)
        return;
    if (now_ns >= log->phase_ns + 1000 * NS_PER_MS)
        log->backoff_ms = FIRST_BACKOFF_MS;
    if (now_ns >= log->ask_ns + log->probe_ms * NS_PER_MS)
        weir_redis_callers_ask(log);
}

static unsigned tick(weir_directory_log *base)
{
    weir_redis_log *log = (weir_redis_log *)base;
    look_after_connections(log, weir_now_ns());
    weir_redis_callers_expire(log);
    weir_redis_snapshot_consider(log);
    if (log->phase != WEIR_REDIS_FOLLOWING)
        return 20;
    return log->appends.n_items + log->readers.n_items > 0 ? 50 : 200;
}

static const char *trouble(const weir_directory_log *base)
{
    const weir_redis_log *log = (const weir_redis_log *)base;
    return log->phase == WEIR_REDIS_FOLLOWING ? NULL : log->trouble;
}

/* ---- Redis' clock ----------------------------------------------------------------------------*/

void weir_redis_log_clock(weir_redis_log *log, uint64_t redis_ms)
{
    log->clock_ms = redis_ms;
    log->clock_ns = weir_now_ns();
}

/* As Redis said it last, going on by this process' clock. When Redis' clock is set back, ids of
 * records stand still until it has come so far again, and so does this. */
uint64_t weir_redis_log_now_ms(const weir_directory_log *base)
{
    weir_redis_log *log = (weir_redis_log *)base;
    uint64_t now_ms = log->clock_ms + (weir_now_ns() - log->clock_ns) / NS_PER_MS;
    if (log->clock_ms != 0 && now_ms > log->given_ms)
        log->given_ms = now_ms;
    return log->given_ms;
}

/* ---- commands --------------------------------------------------------------------------------*/

bool weir_redis_log_eval(weir_redis_log *log, weir_redis_answer answer, uint64_t number,
                         const char *script, const weir_redis_key *keys, size_t n_keys,
                         const weir_redis_word *arguments, size_t n_arguments)
{
    weir_redis_word words[3 + WEIR_REDIS_KEYS + 8];
    char n_keys_text[8];
    size_t n = 0;
    int n_text = snprintf(n_keys_text, sizeof(n_keys_text), "%zu", n_keys);
    words[n++] = (weir_redis_word){ "EVAL", 4 };
    words[n++] = (weir_redis_word){ script, strlen(script) };
    words[n++] = (weir_redis_word){ n_keys_text, (size_t)n_text };
    for (size_t i = 0; i < n_keys; i++)
        words[n++] = (weir_redis_word){ log->keys[keys[i]], strlen(log->keys[keys[i]]) };
    for (size_t i = 0; i < n_arguments; i++)
        words[n++] = arguments[i];
    return weir_redis_link_send(&log->command, answer, number, words, n);
}

/* ---- opening and closing ---------------------------------------------------------------------*/

static void close_log(weir_directory_log *base)
{
    weir_redis_log *log = (weir_redis_log *)base;
    if (log == NULL)
        return;
    log->command.events = log->follow.events = NULL; /* the server may be gone */
    weir_redis_link_free(&log->command);
    weir_redis_link_free(&log->follow);
    weir_redis_snapshot_stop(log);
    weir_redis_callers_close(log);
    weir_redis_url_close(&log->url);
    weir_free(log);
}

static const weir_log_ops ops = {
    .append = weir_redis_append_record,
    .catch_up = weir_redis_catch_up,
    .now_ms = weir_redis_log_now_ms,
    .tick = tick,
    .trouble = trouble,
    .close = close_log,
};

static weir_status name_keys(weir_redis_log *log, const char *name)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    if (name == NULL)
        name = "default";
    size_t n = strlen(name);
    if (n == 0 || n > NAME_MAX_BYTES || strspn(name, letters) != n)
        return weir_fail(WEIR_ERR_INVALID,
                         "the name of a log in Redis is 1 to %d letters, digits, '.', '_' and '-'",
                         NAME_MAX_BYTES);
    static const char *const endings[WEIR_REDIS_KEYS] = { "log", "head", "snapshot", "guard",
                                                          "snapshot:" };
    for (int i = 0; i < WEIR_REDIS_KEYS; i++)
        snprintf(log->keys[i], sizeof(log->keys[i]), "weir:%s:%s%s", name, endings[i],
                 i == WEIR_REDIS_OWN ? log->origin_text : "");
    return WEIR_OK;
}

static weir_status look_up(weir_redis_log *log)
{
    struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
    struct addrinfo *all = NULL;
    int code = getaddrinfo(log->url.host, NULL, &hints, &all);
    if (code != 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "%s: %s", log->url.who,
                         code == EAI_SYSTEM ? strerror(errno) : gai_strerror(code));
    for (const struct addrinfo *one = all; one != NULL; one = one->ai_next) {
        char *text = log->addresses[log->n_addresses];
        if (log->n_addresses < WEIR_REDIS_ADDRESSES &&
            getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof(log->addresses[0]), NULL, 0,
                        NI_NUMERICHOST) == 0)
            log->n_addresses++;
    }
    freeaddrinfo(all);
    if (log->n_addresses == 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "%s: its name has no address", log->url.who);
    return WEIR_OK;
}

static weir_status prepare(weir_redis_log *log, const weir_redis_log_options *options,
                           const weir_log_reader *reader, const weir_redis_events *events)
{
    if (getrandom(&log->origin, sizeof(log->origin), GRND_NONBLOCK) != sizeof(log->origin))
        log->origin = weir_unix_ms() << 20 ^ weir_now_ns();
    snprintf(log->origin_text, sizeof(log->origin_text), "%016" PRIx64, log->origin);
    log->base.ops = &ops;
    log->reader = *reader;
    log->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : TIMEOUT_MS;
    log->probe_ms = log->timeout_ms / 3 < PROBE_MS ? log->timeout_ms / 3 + 1 : PROBE_MS;
    log->snapshot_every = options->snapshot_every != 0 ? options->snapshot_every : SNAPSHOT_EVERY;
    log->backoff_ms = FIRST_BACKOFF_MS;
    log->is_opening = true;
    log->must_load = true;
    log->events = *events;
    weir_redis_callers_init(log);
    weir_redis_link_init(&log->command, &log->events, on_down, log);
    weir_redis_link_init(&log->follow, &log->events, on_down, log);
    weir_status status = weir_redis_url_parse(options->url, &log->url);
    if (status == WEIR_OK)
        status = name_keys(log, options->name);
    if (status != WEIR_OK)
        return status;
    snprintf(log->trouble, sizeof(log->trouble), "%s: no answer", log->url.who);
    return look_up(log);
}

static void caught_up(void *context, uint64_t ticket, uint64_t now_ms)
{
    (void)ticket, (void)now_ms;
    *(bool *)context = true;
}

/* What counts as a word from Redis: a step on the way, a record, and bytes of a long snapshot. */
static uint64_t last_word_ns(const weir_redis_log *log)
{
    uint64_t heard_ns = log->phase == WEIR_REDIS_LOADING     ? log->command.heard_ns
                        : log->phase == WEIR_REDIS_FOLLOWING ? log->follow.heard_ns
                                                             : 0;
    if (log->phase > WEIR_REDIS_GREETING && log->phase_ns > heard_ns)
        return log->phase_ns;
    return heard_ns;
}

static weir_status wait_until_current(weir_redis_log *log, weir_redis_poll *loop)
{
    bool is_current = false, is_asked = false;
    uint64_t word_ns = weir_now_ns();
    while (!is_current) {
        unsigned wait_ms = tick(&log->base);
        weir_redis_poll_once(loop, wait_ms < 20 ? wait_ms : 20);
        if (log->failed != WEIR_OK)
            return log->failed;
        if (log->phase != WEIR_REDIS_FOLLOWING)
            is_asked = false;
        else if (!is_asked)
            is_asked = weir_redis_catch_up(&log->base, 0, caught_up, &is_current) == WEIR_OK;
        if (last_word_ns(log) > word_ns)
            word_ns = last_word_ns(log);
        if (weir_now_ns() > word_ns + log->timeout_ms * NS_PER_MS)
            return weir_fail(WEIR_ERR_PEER_LOST, "%s, for %.1f s", log->trouble,
                             log->timeout_ms / 1e3);
    }
    return WEIR_OK;
}

weir_status weir_redis_log_open(const weir_redis_log_options *options,
                                const weir_log_reader *reader, weir_directory_log **out)
{
    weir_redis_log *log = weir_alloc_zeroed(1, sizeof(*log));
    if (log == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_redis_poll loop;
    weir_redis_events events;
    weir_redis_poll_init(&loop, &events);
    weir_status status = prepare(log, options, reader, &events);
    if (status == WEIR_OK)
        status = wait_until_current(log, &loop);
    if (status != WEIR_OK) {
        close_log(&log->base);
        return status;
    }
    log->is_opening = false;
    /* The loop is gone with this frame: until it is attached, nobody looks after the sockets. */
    weir_redis_link_move(&log->command, NULL);
    weir_redis_link_move(&log->follow, NULL);
    *out = &log->base;
    return WEIR_OK;
}

weir_status weir_redis_log_watch(weir_directory_log *base, const weir_redis_events *events)
{
    weir_redis_log *log = (weir_redis_log *)base;
    log->events = *events;
    weir_status status = weir_redis_link_move(&log->command, &log->events);
    return status == WEIR_OK ? weir_redis_link_move(&log->follow, &log->events) : status;
}

static weir_status watch_by_server(void *context, int fd, uint32_t events,
                                   void (*ready)(void *context, uint32_t events),
                                   void *ready_context)
{
    return weir_rpc_server_watch(context, fd, events, ready, ready_context);
}

weir_status weir_redis_log_attach(weir_directory_log *base, weir_rpc_server *server)
{
    weir_redis_events events = { .watch = watch_by_server, .context = server };
    return weir_redis_log_watch(base, &events);
}
