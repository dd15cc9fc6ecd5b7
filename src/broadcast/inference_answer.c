/* SPDX-License-Identifier: Apache-2.0 */
/* inference_answer.c - what an orchestrator is told, as JSON. With the server's lock. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "broadcast/inference_core.h"
#include "directory/json_text.h"

static void begin(weir_json_text *json, weir_inference_answer *out, unsigned http_status)
{
    out->status = http_status;
    weir_json_begin(json, out->body, sizeof(out->body) - 1);
    weir_json_open(json, NULL);
}

static void end(weir_json_text *json, weir_inference_answer *out)
{
    weir_json_close(json);
    if (!weir_json_end(json))
        snprintf(out->body, sizeof(out->body), "{\"error\": \"the answer does not fit\"}");
    size_t n = strlen(out->body);
    memcpy(out->body + n, "\n", 2);
}

static const char *name_of(weir_inference_state state)
{
    static const char *const names[] = { "empty", "holding", "unusable" };
    return names[state];
}

static void put_version(weir_json_text *json, const char *key, bool has_version, uint64_t version)
{
    if (has_version)
        weir_json_number(json, key, version);
    else
        weir_json_null(json, key);
}

static void put_held(const weir_inference *server, weir_json_text *json)
{
    const weir_inference_info *info = &server->info;
    put_version(json, "version", info->state == WEIR_INFERENCE_HOLDING, info->version);
    weir_json_string(json, "state", name_of(info->state));
}

void weir_inference_say_joined(const weir_inference *server, weir_inference_answer *out)
{
    weir_json_text json;
    begin(&json, out, 200);
    weir_json_open_list(&json, "ranks");
    for (uint32_t i = 0; i < server->n_workers; i++)
        weir_json_number(&json, NULL, server->info.rank + i);
    weir_json_close_list(&json);
    end(&json, out);
}

void weir_inference_say_paused(const weir_inference *server, weir_inference_answer *out)
{
    weir_json_text json;
    begin(&json, out, 200);
    weir_json_bool(&json, "paused", server->info.paused);
    end(&json, out);
}

void weir_inference_say_updated(const weir_inference *server, weir_inference_answer *out)
{
    weir_json_text json;
    begin(&json, out, 200);
    weir_json_number(&json, "version", server->info.version);
    weir_json_number(&json, "bytes", server->info.n_bytes);
    weir_json_millionths(&json, "seconds", (uint64_t)(server->info.seconds * 1e6));
    end(&json, out);
}

void weir_inference_say_resumed(const weir_inference *server, weir_inference_answer *out)
{
    weir_json_text json;
    begin(&json, out, 200);
    weir_json_bool(&json, "paused", server->info.paused);
    put_held(server, &json);
    end(&json, out);
}

void weir_inference_say_reverted(const weir_inference *server, weir_inference_answer *out)
{
    weir_json_text json;
    begin(&json, out, 200);
    put_held(server, &json);
    weir_json_bool(&json, "paused", server->info.paused);
    end(&json, out);
}

static void put_worker(const weir_inference *server, uint32_t i, weir_json_text *json)
{
    const weir_inference_worker *worker = &server->workers[i];
    bool holds = worker->has_version && !worker->is_unusable;
    weir_inference_state state = worker->is_unusable ? WEIR_INFERENCE_UNUSABLE
                                 : holds             ? WEIR_INFERENCE_HOLDING
                                                     : WEIR_INFERENCE_EMPTY;
    weir_json_open(json, NULL);
    if (server->info.joined)
        weir_json_number(json, "rank", server->info.rank + i);
    else
        weir_json_null(json, "rank");
    put_version(json, "version", holds, worker->version);
    weir_json_string(json, "state", name_of(state));
    weir_json_close(json);
}

void weir_inference_say_weights(const weir_inference *server, weir_inference_answer *out)
{
    const weir_inference_info *info = &server->info;
    char version[32];
    weir_json_text json;
    begin(&json, out, 200);
    snprintf(version, sizeof(version), "%llu", (unsigned long long)info->version);
    if (info->state == WEIR_INFERENCE_HOLDING)
        weir_json_string(&json, "weight_version", version);
    else
        weir_json_null(&json, "weight_version");
    put_held(server, &json);
    weir_json_bool(&json, "joined", info->joined);
    weir_json_bool(&json, "paused", info->paused);
    weir_json_bool(&json, "updating", info->updating);
    if (info->joined)
        weir_json_string(&json, "mode", info->kernel_mode ? "kernel" : "checkpoint");
    else
        weir_json_null(&json, "mode");
    weir_json_string(&json, "model", server->options.model);
    weir_json_string(&json, "run", info->joined ? server->joined.run : "");
    weir_json_string(&json, "error", info->error);
    weir_json_open_list(&json, "workers");
    for (uint32_t i = 0; i < server->n_workers; i++)
        put_worker(server, i, &json);
    weir_json_close_list(&json);
    end(&json, out);
}

void weir_inference_say_health(const weir_inference *server, weir_inference_answer *out)
{
    bool is_well = server->info.state != WEIR_INFERENCE_UNUSABLE;
    weir_json_text json;
    begin(&json, out, is_well ? 200 : 503);
    weir_json_string(&json, "status", is_well ? "ok" : "unusable");
    if (!is_well)
        weir_json_string(&json, "error", server->info.error);
    end(&json, out);
}

void weir_inference_say_is_paused(const weir_inference *server, weir_inference_answer *out)
{
    weir_json_text json;
    begin(&json, out, 200);
    weir_json_bool(&json, "is_paused", server->info.paused);
    end(&json, out);
}

/* What came from outside, file names and bodies, may be no UTF-8, which JSON is. */
static void put_line(weir_json_text *json, const char *line)
{
    char plain[WEIR_ERROR_TEXT];
    json_t *text = json_string(line);
    snprintf(plain, sizeof(plain), "%s", line);
    for (char *at = plain; text == NULL && *at != '\0'; at++)
        *at = (unsigned char)*at < 0x80 ? *at : '?';
    json_decref(text);
    weir_json_string(json, "error", plain);
}

void weir_inference_say_error(const weir_inference *server, unsigned http_status, const char *line,
                              weir_inference_answer *out)
{
    weir_json_text json;
    begin(&json, out, http_status);
    put_line(&json, line);
    if (server != NULL)
        put_held(server, &json);
    end(&json, out);
}
