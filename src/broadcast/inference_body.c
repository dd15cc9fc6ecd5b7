/* SPDX-License-Identifier: Apache-2.0 */
/* inference_body.c - JSON to wishes. Members that nobody here knows are ignored: orchestrators say
 * more to engines than to Weir. */
#include "broadcast/inference_body.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "weir/run_config.h"

/* ---- members ---------------------------------------------------------------------------------*/

static const char *type_of(const json_t *value)
{
    static const char *const names[] = { "an object",     "a list",   "a text",
                                         "an integer",    "a number", "a truth value",
                                         "a truth value", "null" };
    return names[json_typeof(value)];
}

static weir_status wrong_type(const char *name, const json_t *value, const char *wanted)
{
    if (value == NULL)
        return weir_fail(WEIR_ERR_INVALID, "'%s' is missing: %s is wanted", name, wanted);
    return weir_fail(WEIR_ERR_INVALID, "'%s' is %s: %s is wanted", name, type_of(value), wanted);
}

static bool is_said(const json_t *body, const char *name)
{
    const json_t *value = json_object_get(body, name);
    return value != NULL && !json_is_null(value);
}

static weir_status read_number(const json_t *body, const char *name, uint64_t least, uint64_t most,
                               uint64_t *out)
{
    const json_t *value = json_object_get(body, name);
    if (!json_is_integer(value))
        return wrong_type(name, value, "an integer");
    json_int_t number = json_integer_value(value);
    if (number < 0 || (uint64_t)number < least || (uint64_t)number > most)
        return weir_fail(WEIR_ERR_INVALID,
                         "'%s' is %" JSON_INTEGER_FORMAT ": %" PRIu64 " to %" PRIu64 " is wanted",
                         name, number, least, most);
    *out = (uint64_t)number;
    return WEIR_OK;
}

static weir_status read_count(const json_t *body, const char *name, uint32_t least, uint32_t *out)
{
    uint64_t number = 0;
    weir_status status = read_number(body, name, least, INT32_MAX, &number);
    *out = (uint32_t)number;
    return status;
}

/* What goes into addresses, names and error lines. */
static bool is_plain(const char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text <= ' ' || *text == 0x7f)
            return false;
    }
    return true;
}

static weir_status read_text(const json_t *body, const char *name, char *out, size_t n_out)
{
    const json_t *value = json_object_get(body, name);
    if (!json_is_string(value))
        return wrong_type(name, value, "a text");
    const char *text = json_string_value(value);
    size_t n = json_string_length(value);
    if (n == 0 || n >= n_out || strlen(text) != n || !is_plain(text))
        return weir_fail(WEIR_ERR_INVALID,
                         "'%s' has %zu bytes: 1 to %zu are wanted, without spaces", name, n,
                         n_out - 1);
    memcpy(out, text, n + 1);
    return WEIR_OK;
}

static weir_status read_flag(const json_t *body, const char *name, bool *out)
{
    const json_t *value = json_object_get(body, name);
    if (!is_said(body, name))
        return WEIR_OK;
    if (!json_is_boolean(value))
        return wrong_type(name, value, "true or false");
    *out = json_is_true(value);
    return WEIR_OK;
}

/* Seconds, as orchestrators say them: 1200, 0.5. */
static weir_status read_timeout(const json_t *body, unsigned *out_ms)
{
    const json_t *value = json_object_get(body, "timeout");
    if (!is_said(body, "timeout"))
        return WEIR_OK;
    if (!json_is_number(value))
        return wrong_type("timeout", value, "a number of seconds");
    double seconds = json_number_value(value);
    if (!(seconds >= 0.001 && seconds <= WEIR_MOST_TIMEOUT_S))
        return weir_fail(WEIR_ERR_INVALID, "'timeout' is %g: 0.001 to %u seconds are wanted",
                         seconds, WEIR_MOST_TIMEOUT_S);
    *out_ms = (unsigned)(seconds * 1000);
    return WEIR_OK;
}

static weir_status read_object(const char *body, size_t n_bytes, json_t **out)
{
    json_error_t error;
    *out = json_loadb(body != NULL ? body : "", n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (*out == NULL)
        return weir_fail(WEIR_ERR_FORMAT, "the body is no JSON object: %s (line %d, column %d)",
                         error.text, error.line, error.column);
    if (json_is_object(*out))
        return WEIR_OK;
    weir_status status =
        weir_fail(WEIR_ERR_FORMAT, "the body is %s: a JSON object is wanted", type_of(*out));
    json_decref(*out);
    *out = NULL;
    return status;
}

/* ---- joining ---------------------------------------------------------------------------------*/

/* As engines number their workers: this server is the server_rank-th of num_inference_server. */
static weir_status read_server(const json_t *body, uint32_t tp, uint32_t dp, weir_join_wish *out)
{
    uint32_t server = 0, n_servers = 0, size = 0;
    weir_status status = read_count(body, "server_rank", 0, &server);
    if (status == WEIR_OK)
        status = read_count(body, "num_inference_server", 1, &n_servers);
    if (status == WEIR_OK && server >= n_servers)
        status = weir_fail(WEIR_ERR_INVALID,
                           "'server_rank' is %u and 'num_inference_server' %u: ranks count from 0",
                           server, n_servers);
    const weir_run_group group = { n_servers, tp, dp };
    if (status == WEIR_OK)
        status = weir_run_worker_rank(&group, server, 0, 0, &out->first_rank);
    if (status == WEIR_OK)
        status = weir_run_group_size(&group, &size);
    if (status != WEIR_OK)
        return status;
    out->n_workers_of_all = size - 1;
    snprintf(out->server, sizeof(out->server), "server-%u", server);
    return WEIR_OK;
}

/* Where engines cannot tell their own number: workers begin behind rank_offset. */
static weir_status read_offset(const json_t *body, uint32_t n_workers, weir_join_wish *out)
{
    uint32_t offset = 0, last_rank = 0;
    weir_status status = read_count(body, "rank_offset", 0, &offset);
    if (status == WEIR_OK)
        status = read_count(body, "inference_world_size", 1, &out->n_workers_of_all);
    if (status == WEIR_OK)
        status = weir_run_offset_rank(offset, n_workers - 1, out->n_workers_of_all, &last_rank);
    if (status != WEIR_OK)
        return status;
    out->first_rank = offset + 1;
    if (offset % n_workers == 0)
        snprintf(out->server, sizeof(out->server), "server-%u", offset / n_workers);
    else
        snprintf(out->server, sizeof(out->server), "server-at-%u", offset);
    return WEIR_OK;
}

/* Whoever says both says the same. */
static weir_status read_both(const json_t *body, uint32_t tp, uint32_t dp, weir_join_wish *out)
{
    weir_join_wish other = *out;
    weir_status status = read_server(body, tp, dp, out);
    if (status == WEIR_OK)
        status = read_offset(body, tp * dp, &other);
    if (status != WEIR_OK)
        return status;
    if (out->first_rank != other.first_rank)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s of %u workers begins at rank %u, 'rank_offset' says %u", out->server,
                         tp * dp, out->first_rank, other.first_rank);
    if (out->n_workers_of_all != other.n_workers_of_all)
        return weir_fail(WEIR_ERR_INVALID,
                         "'num_inference_server' makes %u workers, 'inference_world_size' is %u",
                         out->n_workers_of_all, other.n_workers_of_all);
    return WEIR_OK;
}

static weir_status read_ranks(const json_t *body, uint32_t tp, uint32_t dp, weir_join_wish *out)
{
    bool by_server = is_said(body, "server_rank") || is_said(body, "num_inference_server");
    bool by_offset = is_said(body, "rank_offset") || is_said(body, "inference_world_size");
    if (by_server && by_offset)
        return read_both(body, tp, dp, out);
    return by_offset ? read_offset(body, tp * dp, out) : read_server(body, tp, dp, out);
}

weir_status weir_join_wish_read(const char *body, size_t n_bytes, uint32_t tp, uint32_t dp,
                                weir_join_wish *out)
{
    json_t *object;
    uint64_t port = 0;
    weir_join_wish wish = { .run = "default" };
    weir_status status = read_object(body, n_bytes, &object);
    if (status != WEIR_OK)
        return status;
    status = read_text(object, "host", wish.host, sizeof(wish.host));
    if (status == WEIR_OK)
        status = read_number(object, "port", 1, 65535, &port);
    if (status == WEIR_OK)
        status = read_ranks(object, tp, dp, &wish);
    if (status == WEIR_OK)
        status = read_flag(object, "quantize_in_weight_transfer", &wish.kernel_mode);
    if (status == WEIR_OK && is_said(object, "session_id"))
        status = read_text(object, "session_id", wish.run, sizeof(wish.run));
    if (status == WEIR_OK)
        status = read_timeout(object, &wish.timeout_ms);
    json_decref(object);
    wish.port = (uint32_t)port;
    if (status == WEIR_OK)
        *out = wish;
    return status;
}

bool weir_join_wish_equal(const weir_join_wish *a, const weir_join_wish *b)
{
    return strcmp(a->host, b->host) == 0 && a->port == b->port && strcmp(a->run, b->run) == 0 &&
           a->first_rank == b->first_rank && a->n_workers_of_all == b->n_workers_of_all &&
           a->kernel_mode == b->kernel_mode;
}

/* ---- updating --------------------------------------------------------------------------------*/

/* ".../step_12", with a slash behind it or without. */
static bool step_of(const char *path, uint64_t *out)
{
    size_t end = strlen(path);
    uint64_t number = 0;
    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t first = end;
    while (first > 0 && path[first - 1] >= '0' && path[first - 1] <= '9')
        first--;
    if (first == end || end - first > 18 || first < strlen("step_") ||
        strncmp(path + first - strlen("step_"), "step_", strlen("step_")) != 0)
        return false;
    size_t begin = first - strlen("step_");
    if (begin > 0 && path[begin - 1] != '/')
        return false;
    for (; first < end; first++)
        number = 10 * number + (uint64_t)(path[first] - '0');
    *out = number;
    return true;
}

static weir_status read_weight_dir(const json_t *body, weir_update_wish *wish)
{
    const json_t *value = json_object_get(body, "weight_dir");
    if (!is_said(body, "weight_dir"))
        return WEIR_OK;
    if (!json_is_string(value))
        return wrong_type("weight_dir", value, "a text or null");
    if (strlen(json_string_value(value)) != json_string_length(value) ||
        !step_of(json_string_value(value), &wish->version))
        return weir_fail(WEIR_ERR_INVALID, "'weight_dir' is '%.200s': .../step_N is wanted",
                         json_string_value(value));
    wish->has_version = true;
    return WEIR_OK;
}

static weir_status read_version(const json_t *body, weir_update_wish *wish)
{
    uint64_t version = 0;
    if (!is_said(body, "version"))
        return WEIR_OK;
    weir_status status = read_number(body, "version", 0, INT64_MAX, &version);
    if (status != WEIR_OK)
        return status;
    if (wish->has_version && wish->version != version)
        return weir_fail(WEIR_ERR_INVALID,
                         "'weight_dir' says version %" PRIu64 ", 'version' %" PRIu64, wish->version,
                         version);
    wish->has_version = true;
    wish->version = version;
    return WEIR_OK;
}

weir_status weir_update_wish_read(const char *body, size_t n_bytes, weir_update_wish *out)
{
    json_t *object;
    weir_update_wish wish = { .version = 0 };
    if (n_bytes == 0) {
        *out = wish;
        return WEIR_OK;
    }
    weir_status status = read_object(body, n_bytes, &object);
    if (status != WEIR_OK)
        return status;
    status = read_weight_dir(object, &wish);
    if (status == WEIR_OK)
        status = read_version(object, &wish);
    if (status == WEIR_OK)
        status = read_timeout(object, &wish.timeout_ms);
    json_decref(object);
    if (status == WEIR_OK)
        *out = wish;
    return status;
}

/* ---- reverting -------------------------------------------------------------------------------*/

weir_status weir_revert_wish_read(const char *body, size_t n_bytes, unsigned *out_timeout_ms)
{
    json_t *object;
    unsigned timeout_ms = 0;
    weir_status status = n_bytes > 0 ? read_object(body, n_bytes, &object) : WEIR_OK;
    if (n_bytes > 0 && status == WEIR_OK) {
        status = read_timeout(object, &timeout_ms);
        json_decref(object);
    }
    if (status == WEIR_OK)
        *out_timeout_ms = timeout_ms;
    return status;
}
