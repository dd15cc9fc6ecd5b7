/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_words.c - bodies of calls to servers, and their answers, which may be anybody's
 * bytes. Pure. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "broadcast/orchestrator_core.h"
#include "directory/json_text.h"

#define BODY_BYTES 8192u
#define MOST_DIGITS 18u
#define CALLED_OFF 502u /* by its trainer, mostly because of another server */
#define DID_NOT_COME 504u
#define IS_GONE 410u /* a later one has come */

const char *weir_order_path(weir_server_order order)
{
    static const char *const paths[WEIR_N_ORDERS] = {
        [WEIR_ASK_NOTHING] = "",
        [WEIR_ASK_HELD] = "/weight_info",
        [WEIR_ASK_JOIN] = "/init_broadcaster",
        [WEIR_ASK_PAUSE] = "/pause?mode=keep&clear_cache=false",
        [WEIR_ASK_INSTALL] = "/update_weights",
        [WEIR_ASK_RESUME] = "/resume",
        [WEIR_ASK_REVERT] = "/revert",
    };
    return paths[order];
}

/* ---- bodies ----------------------------------------------------------------------------------*/

static void put_timeout(weir_json_text *json, const weir_order_words *words)
{
    weir_json_millionths(json, "timeout", (uint64_t)(words->timeout_s * 1e6));
}

static void put_join(weir_json_text *json, const weir_order_words *words)
{
    weir_json_string(json, "host", words->host);
    weir_json_number(json, "port", words->port);
    weir_json_number(json, "server_rank", words->server);
    weir_json_number(json, "num_inference_server", words->n_servers);
    put_timeout(json, words);
    weir_json_bool(json, "quantize_in_weight_transfer", words->kernel_mode);
    weir_json_string(json, "session_id", words->run);
}

static void put_install(weir_json_text *json, const weir_order_words *words)
{
    char path[4096];
    weir_json_number(json, "version", words->version);
    if (words->marker_dir != NULL) {
        snprintf(path, sizeof(path), "%s/step_%" PRIu64, words->marker_dir, words->version);
        weir_json_string(json, "weight_dir", path);
    }
    put_timeout(json, words);
}

char *weir_order_body(weir_server_order order, const weir_order_words *words)
{
    char text[BODY_BYTES];
    weir_json_text json;
    if (order == WEIR_ASK_HELD)
        return NULL;
    weir_json_begin(&json, text, sizeof(text));
    weir_json_open(&json, NULL);
    if (order == WEIR_ASK_JOIN)
        put_join(&json, words);
    else if (order == WEIR_ASK_INSTALL)
        put_install(&json, words);
    else if (order == WEIR_ASK_REVERT)
        put_timeout(&json, words);
    weir_json_close(&json);
    if (!weir_json_end(&json)) {
        weir_fail(WEIR_ERR_INVALID, "the body of POST %s has more than %u bytes",
                  weir_order_path(order), BODY_BYTES);
        return NULL;
    }
    return weir_strdup(text);
}

/* ---- answers ---------------------------------------------------------------------------------*/

void weir_held_text(const weir_held_key *held, char *text, size_t n_text)
{
    static const char *const words[] = { "nobody knows what", "no whole version",
                                         "what it came with" };
    if (held->held == WEIR_HELD_VERSION)
        snprintf(text, n_text, "version %" PRIu64, held->version);
    else
        snprintf(text, n_text, "%s", words[held->held]);
}

static bool read_digits(const char *text, uint64_t *out)
{
    size_t n = strlen(text);
    if (n == 0 || n > MOST_DIGITS || strspn(text, "0123456789") != n)
        return false;
    *out = 0;
    for (const char *at = text; *at != '\0'; at++)
        *out = *out * 10 + (uint64_t)(*at - '0');
    return true;
}

/* A number, digits, or null: what the engine came with. False for anything else. */
static bool read_key(const json_t *value, weir_held_key *out)
{
    weir_held_key key = { .held = WEIR_HELD_VERSION };
    if (json_is_null(value))
        key.held = WEIR_HELD_START;
    else if (json_is_integer(value) && json_integer_value(value) >= 0)
        key.version = (uint64_t)json_integer_value(value);
    else if (!json_is_string(value) || !read_digits(json_string_value(value), &key.version))
        return false;
    *out = key;
    return true;
}

static bool is_text(const json_t *object, const char *name, const char *wanted)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL && strcmp(text, wanted) == 0;
}

/* Workers that hold different things hold no whole version, whatever their server says. */
static bool all_workers_agree(const json_t *workers, const weir_held_key *key)
{
    size_t i;
    const json_t *worker;
    json_array_foreach(workers, i, worker)
    {
        weir_held_key held;
        if (is_text(worker, "state", "unusable") ||
            !read_key(json_object_get(worker, "version"), &held) || !weir_held_equal(&held, key))
            return false;
    }
    return true;
}

static bool read_holds(const json_t *body, weir_held_key *out)
{
    const json_t *version = json_object_get(body, "version");
    if (is_text(body, "state", "unusable") || json_is_true(json_object_get(body, "updating"))) {
        *out = (weir_held_key){ .held = WEIR_HELD_NONE };
        return true;
    }
    if (version == NULL)
        version = json_object_get(body, "weight_version");
    if (version == NULL || !read_key(version, out))
        return false;
    if (!all_workers_agree(json_object_get(body, "workers"), out))
        out->held = WEIR_HELD_NONE;
    return true;
}

static bool read_held(const json_t *body, const char *run, weir_server_answer *out)
{
    const json_t *paused = json_object_get(body, "paused");
    const json_t *joined = json_object_get(body, "joined");
    if (!read_holds(body, &out->holds))
        return false;
    out->is_busy = json_is_true(json_object_get(body, "updating"));
    out->tells_paused = json_is_boolean(paused);
    out->is_paused = json_is_true(paused);
    out->has_left =
        json_is_false(joined) || (json_is_true(joined) && json_object_get(body, "run") != NULL &&
                                  !is_text(body, "run", run));
    return true;
}

static void say_refused(const json_t *body, const weir_server_reply *reply, char *cause,
                        size_t n_cause)
{
    const char *error = json_string_value(json_object_get(body, "error"));
    if (error != NULL)
        snprintf(cause, n_cause, "HTTP %u: %s", reply->http_status, error);
    else
        snprintf(cause, n_cause, "HTTP %u", reply->http_status);
}

static void say_unanswered(const weir_server_reply *reply, char *cause, size_t n_cause)
{
    if (reply->end == WEIR_CALL_LATE)
        snprintf(cause, n_cause, "no answer within %.1f s", reply->seconds);
    else
        snprintf(cause, n_cause, "%s%s",
                 reply->end == WEIR_CALL_UNSENT ? "it cannot be reached: "
                 : reply->end == WEIR_CALL_LOST ? "it went away: "
                                                : "",
                 reply->cause);
}

void weir_order_answer(weir_server_order order, const weir_server_reply *reply, const char *run,
                       weir_server_answer *out, char *cause, size_t n_cause)
{
    *out = (weir_server_answer){ .end = reply->end };
    cause[0] = '\0';
    bool is_answered = reply->end == WEIR_CALL_OK || reply->end == WEIR_CALL_REFUSED ||
                       reply->end == WEIR_CALL_ABSENT;
    json_t *body = is_answered ? json_loadb(reply->body, reply->n_body, 0, NULL) : NULL;
    if (!is_answered) {
        say_unanswered(reply, cause, n_cause);
    } else if (reply->end != WEIR_CALL_OK) {
        out->may_again = reply->http_status == CALLED_OFF || reply->http_status == DID_NOT_COME;
        out->is_gone = reply->http_status == IS_GONE;
        say_refused(body, reply, cause, n_cause);
    } else if (order == WEIR_ASK_HELD && !(json_is_object(body) && read_held(body, run, out))) {
        out->end = WEIR_CALL_GARBLED;
        snprintf(cause, n_cause, "its answer says no version: '%.60s'", reply->body);
    }
    weir_error_one_line(cause);
    json_decref(body);
}
