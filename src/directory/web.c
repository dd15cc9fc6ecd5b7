/* SPDX-License-Identifier: Apache-2.0 */
/* web.c - routes. A look at the fleet is a call of DirectoryService.GetFleet within the process: it
 * waits, is bounded and reads the log like any other, and only its answer goes another way. */
#include "directory/web.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory.pb-c.h"
#include "directory/web_assets.h"
#include "directory/web_metrics.h"
#include "rpc/http_server.h"

#define OWN_TICKET ((uint64_t)1 << 63) /* the rpc server gives none of these */
#define MOST_WAIT_MS 25000u
#define ARENA_BYTES ((size_t)64 << 20)
#define PLAIN "text/plain; charset=utf-8"

struct weir_web {
    weir_directory_core *core;
    weir_http_server *http;
    weir_arena arena; /* of the request that is being answered */
};

/* ---- short answers ---------------------------------------------------------------------------*/

static bool say(weir_http_answer *answer, unsigned status, const char *text)
{
    *answer = (weir_http_answer){ status, PLAIN, text, strlen(text), false };
    return true;
}

static bool say_line(weir_web *web, weir_http_answer *answer, unsigned status, const char *line)
{
    const char *text = weir_arena_format(&web->arena, "%s\n", line);
    return say(answer, status, text != NULL ? text : "out of memory\n");
}

static bool answer_health(weir_web *web, const weir_http_request *request, weir_http_answer *answer)
{
    (void)web, (void)request;
    return say(answer, 200, "ok\n");
}

static bool answer_ready(weir_web *web, const weir_http_request *request, weir_http_answer *answer)
{
    const weir_directory_log *log = web->core->log;
    const char *trouble = log->ops->trouble(log);
    (void)request;
    return trouble == NULL ? say(answer, 200, "ready\n") : say_line(web, answer, 503, trouble);
}

static bool answer_metrics(weir_web *web, const weir_http_request *request,
                           weir_http_answer *answer)
{
    weir_metrics_text metrics;
    uint64_t now_ms = weir_directory_core_now_ms(web->core);
    (void)request;
    const weir_http_counts http = weir_http_server_counts(web->http);
    if (weir_web_metrics(web->core, &http, now_ms, &web->arena, &metrics) != WEIR_OK)
        return say_line(web, answer, 503, weir_last_error());
    *answer = (weir_http_answer){ 200, WEIR_METRICS_TYPE, metrics.bytes, metrics.n_bytes, false };
    return true;
}

/* ---- the page --------------------------------------------------------------------------------*/

static bool answer_html(weir_web *web, const weir_http_request *request, weir_http_answer *answer)
{
    (void)web, (void)request;
    *answer = (weir_http_answer){ 200, "text/html; charset=utf-8", weir_web_fleet_html,
                                  weir_web_fleet_html_bytes, true };
    return true;
}

static bool answer_css(weir_web *web, const weir_http_request *request, weir_http_answer *answer)
{
    (void)web, (void)request;
    *answer = (weir_http_answer){ 200, "text/css; charset=utf-8", weir_web_fleet_css,
                                  weir_web_fleet_css_bytes, true };
    return true;
}

static bool answer_js(weir_web *web, const weir_http_request *request, weir_http_answer *answer)
{
    (void)web, (void)request;
    *answer = (weir_http_answer){ 200, "text/javascript; charset=utf-8", weir_web_fleet_js,
                                  weir_web_fleet_js_bytes, true };
    return true;
}

static bool answer_icon(weir_web *web, const weir_http_request *request, weir_http_answer *answer)
{
    (void)web, (void)request;
    *answer = (weir_http_answer){ 200, "image/svg+xml", weir_web_fleet_svg,
                                  weir_web_fleet_svg_bytes, true };
    return true;
}

/* ---- the fleet -------------------------------------------------------------------------------*/

static weir_rpc_handler find_get_fleet(const weir_directory_core *core)
{
    for (size_t i = 0; i < WEIR_DIRECTORY_SERVICES; i++) {
        const weir_rpc_service *service = &core->services[i];
        for (size_t k = 0; k < service->n_methods; k++) {
            if (strcmp(service->methods[k].name, "GetFleet") == 0)
                return service->methods[k].handler;
        }
    }
    return NULL;
}

/* "?name=123"; *out stays as it is without it. False: it is no number. */
static bool read_number(const weir_http_request *request, const char *name, uint64_t *out)
{
    const char *text = weir_http_query(request, name);
    char *end;
    if (text == NULL || text[0] == '\0')
        return true;
    if (text[0] < '0' || text[0] > '9' || strlen(text) > 19)
        return false;
    *out = strtoull(text, &end, 10);
    return *end == '\0';
}

static void answer_code(weir_web *web, weir_rpc_code code, const ProtobufCMessage *response,
                        const char *text, weir_http_answer *answer)
{
    const Weir__Directory__GetFleetResponse *fleet = (const void *)response;
    if (code == WEIR_RPC_OK)
        *answer =
            (weir_http_answer){ 200, "application/json", fleet->json, strlen(fleet->json), false };
    else
        say_line(web, answer, code == WEIR_RPC_INVALID_ARGUMENT ? 400 : 503, text);
}

static bool answer_fleet(weir_web *web, const weir_http_request *request, weir_http_answer *answer)
{
    Weir__Directory__GetFleetRequest wanted = WEIR__DIRECTORY__GET_FLEET_REQUEST__INIT;
    const char *model = weir_http_query(request, "model");
    uint64_t wait_ms = MOST_WAIT_MS;
    char text[WEIR_RPC_MESSAGE_TEXT] = "";
    if (!read_number(request, "after", &wanted.after_revision) ||
        !read_number(request, "version", &wanted.version_number) ||
        !read_number(request, "wait_ms", &wait_ms) || (model != NULL && strlen(model) > 255))
        return say(answer, 400, "/api/fleet?model=NAME&version=N&after=REVISION&wait_ms=N\n");
    wanted.model_name = (char *)(model != NULL ? model : "");
    wanted.timeout_ms = (uint32_t)(wait_ms < MOST_WAIT_MS ? wait_ms : MOST_WAIT_MS);

    size_t n_bytes = protobuf_c_message_get_packed_size(&wanted.base);
    unsigned char *bytes = weir_arena_alloc(&web->arena, n_bytes);
    weir_rpc_handler get_fleet = find_get_fleet(web->core);
    if (bytes == NULL || get_fleet == NULL)
        return say(answer, 503, "out of memory\n");
    protobuf_c_message_pack(&wanted.base, bytes);
    const weir_rpc_call_info info = { .ticket = OWN_TICKET | request->ticket,
                                      .bytes = bytes,
                                      .n_bytes = n_bytes,
                                      .peer = request->peer };
    const ProtobufCMessage *response = NULL;
    weir_rpc_code code = get_fleet(web->core, &info, &wanted.base, &web->arena, &response, text);
    if (code == WEIR_RPC_LATER)
        return false;
    answer_code(web, code, response, text, answer);
    return true;
}

bool weir_web_owns(uint64_t ticket)
{
    return (ticket & OWN_TICKET) != 0;
}

bool weir_web_answer(weir_web *web, uint64_t ticket, weir_rpc_code code,
                     const ProtobufCMessage *response, const char *text)
{
    weir_http_answer answer;
    answer_code(web, code, response, text != NULL ? text : "", &answer);
    return weir_http_server_answer(web->http, ticket & ~OWN_TICKET, &answer);
}

static void caller_is_gone(void *context, uint64_t ticket)
{
    weir_web *web = context;
    weir_directory_core_gone(web->core, OWN_TICKET | ticket);
}

/* ---- the table -------------------------------------------------------------------------------*/

typedef struct route {
    const char *path;
    bool is_open; /* without a token: there is nothing in it to keep */
    bool (*answer)(weir_web *web, const weir_http_request *request, weir_http_answer *answer);
} route;

static const route routes[] = {
    { "/", true, answer_html },
    { "/fleet.css", true, answer_css },
    { "/fleet.js", true, answer_js },
    { "/fleet.svg", true, answer_icon },
    { "/healthz", true, answer_health },
    { "/readyz", true, answer_ready },
    { "/metrics", false, answer_metrics },
    { "/api/fleet", false, answer_fleet },
};

static const route *find_route(const char *path)
{
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
        if (strcmp(routes[i].path, path) == 0)
            return &routes[i];
    }
    return NULL;
}

static bool is_open(const char *path)
{
    const route *found = find_route(path);
    return found != NULL && found->is_open;
}

static bool handle(void *context, const weir_http_request *request, weir_http_answer *answer)
{
    weir_web *web = context;
    const route *found = find_route(request->path);
    weir_arena_reset(&web->arena); /* what the last answer was made of has been copied */
    if (found == NULL)
        return say(answer, 404, "there is nothing here: try /\n");
    return found->answer(web, request, answer);
}

weir_status weir_web_open(weir_directory_core *core, const char *listen,
                          const weir_rpc_security *security, weir_web **out)
{
    weir_web *web = weir_alloc_zeroed(1, sizeof(*web));
    if (web == NULL)
        return WEIR_ERR_NO_MEMORY;
    web->core = core;
    weir_arena_init(&web->arena, ARENA_BYTES);
    const weir_http_options options = { .listen = listen,
                                        .security = *security,
                                        .is_open = is_open,
                                        .handler = handle,
                                        .gone = caller_is_gone,
                                        .context = web };
    weir_status status = weir_http_server_open(&options, core->server, &web->http);
    if (status != WEIR_OK) {
        weir_web_close(web);
        return status;
    }
    *out = web;
    return WEIR_OK;
}

void weir_web_close(weir_web *web)
{
    if (web == NULL)
        return;
    weir_http_server_close(web->http);
    weir_arena_close(&web->arena);
    weir_free(web);
}

const char *weir_web_address(const weir_web *web)
{
    return weir_http_server_address(web->http);
}
