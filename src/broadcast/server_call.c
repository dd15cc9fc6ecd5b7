/* SPDX-License-Identifier: Apache-2.0 */
/* server_call.c - libcurl's multi interface, one easy handle per server. */
#include "broadcast/server_call.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "rpc/rpc_security.h"

#define URL_BYTES 512u
#define ADDRESS_BYTES 320u
#define AUTHORIZATION_BYTES (WEIR_TOKEN_BYTES + 32)

typedef struct server_call {
    weir_server_calls *calls;
    char address[ADDRESS_BYTES];
    CURL *easy;
    struct curl_slist *headers;
    char *body;
    char *answer; /* WEIR_SERVER_ANSWER_BYTES + 1 */
    size_t n_answer;
    bool is_under_way, is_too_long;
    uint64_t begun_ns;
    char cause[CURL_ERROR_SIZE];
} server_call;

struct weir_server_calls {
    CURLM *multi;
    weir_security_kept kept;
    server_call *servers;
    size_t n_servers;
};

/* ---- addresses -------------------------------------------------------------------------------*/

/* In the place of the scheme that is there or not. */
static weir_status make_address(const weir_rpc_security *security, const char *text,
                                char out[ADDRESS_BYTES])
{
    const char *host = strstr(text, "://");
    bool has_tls = security->ca != NULL;
    if (host != NULL) {
        bool is_https = strncmp(text, "https://", 8) == 0;
        if (!is_https && strncmp(text, "http://", 7) != 0)
            return weir_fail(WEIR_ERR_INVALID, "server '%s': expected http:// or https://", text);
        if (!is_https && has_tls)
            return weir_fail(WEIR_ERR_REFUSED,
                             "server '%s' is to be called in the clear, and a CA is given: say "
                             "https://",
                             text);
        has_tls = is_https;
    }
    host = host != NULL ? host + 3 : text;
    size_t n_host = strcspn(host, "/");
    if (n_host == 0 || n_host > WEIR_RPC_HOST_BYTES || strspn(host + n_host, "/") > 1)
        return weir_fail(WEIR_ERR_INVALID, "server '%s' is no address", text);
    snprintf(out, ADDRESS_BYTES, "%s://%.*s", has_tls ? "https" : "http", (int)n_host, host);
    return WEIR_OK;
}

/* A token is for those who are meant, and for nobody between. */
static weir_status check_address(const weir_rpc_security *security, const char *url)
{
    weir_rpc_address address;
    const char *host = strstr(url, "://") + 3;
    if (strncmp(url, "https://", 8) == 0)
        return WEIR_OK;
    weir_status status = weir_rpc_address_parse(host, &address);
    return status == WEIR_OK ? weir_security_check_call(security, &address) : status;
}

/* ---- one server ------------------------------------------------------------------------------*/

static size_t take_bytes(char *bytes, size_t one, size_t n_bytes, void *context)
{
    server_call *call = context;
    (void)one;
    if (n_bytes > WEIR_SERVER_ANSWER_BYTES - call->n_answer) {
        call->is_too_long = true;
        return 0;
    }
    memcpy(call->answer + call->n_answer, bytes, n_bytes);
    call->n_answer += n_bytes;
    return n_bytes;
}

static void set_tls(CURL *easy, const weir_rpc_security *security)
{
    curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (security->ca != NULL && strcmp(security->ca, "system") != 0) {
        curl_easy_setopt(easy, CURLOPT_CAINFO, security->ca);
        curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
    }
    if (security->certificate != NULL && security->key != NULL) {
        curl_easy_setopt(easy, CURLOPT_SSLCERT, security->certificate);
        curl_easy_setopt(easy, CURLOPT_SSLKEY, security->key);
    }
}

static weir_status open_server(weir_server_calls *calls, server_call *call, const char *text)
{
    const weir_rpc_security *security = &calls->kept.security;
    call->calls = calls;
    weir_status status = make_address(security, text, call->address);
    if (status == WEIR_OK)
        status = check_address(security, call->address);
    if (status != WEIR_OK)
        return status;
    call->answer = weir_alloc(WEIR_SERVER_ANSWER_BYTES + 1);
    call->easy = curl_easy_init();
    if (call->answer == NULL || call->easy == NULL)
        return weir_fail(WEIR_ERR_NO_MEMORY, "no memory for calls to %s", call->address);
    curl_easy_setopt(call->easy, CURLOPT_PRIVATE, call);
    curl_easy_setopt(call->easy, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(call->easy, CURLOPT_WRITEDATA, call);
    curl_easy_setopt(call->easy, CURLOPT_ERRORBUFFER, call->cause);
    curl_easy_setopt(call->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(call->easy, CURLOPT_PROXY, "");
    curl_easy_setopt(call->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(call->easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(call->easy, CURLOPT_FRESH_CONNECT, 1L);
    curl_easy_setopt(call->easy, CURLOPT_FORBID_REUSE, 1L);
    curl_easy_setopt(call->easy, CURLOPT_USERAGENT, "weir/" WEIR_VERSION);
    set_tls(call->easy, security);
    return WEIR_OK;
}

static void end_call(server_call *call)
{
    if (call->is_under_way)
        curl_multi_remove_handle(call->calls->multi, call->easy);
    call->is_under_way = false;
    curl_slist_free_all(call->headers);
    call->headers = NULL;
    weir_free(call->body);
    call->body = NULL;
}

/* ---- all servers -----------------------------------------------------------------------------*/

weir_status weir_server_calls_open(const char *const *addresses, size_t n_addresses,
                                   const weir_security *security, weir_server_calls **out)
{
    weir_server_calls *calls = weir_alloc_zeroed(1, sizeof(*calls));
    if (calls == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_security_resolve(security, &calls->kept);
    if (status != WEIR_OK)
        goto err_close;
    calls->servers = weir_alloc_zeroed(n_addresses, sizeof(*calls->servers));
    if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK)
        calls->multi = curl_multi_init();
    if (calls->servers == NULL || calls->multi == NULL) {
        status = weir_fail(WEIR_ERR_NO_MEMORY, "no memory for calls to %zu servers", n_addresses);
        goto err_close;
    }
    for (; calls->n_servers < n_addresses; calls->n_servers++) {
        status = open_server(calls, &calls->servers[calls->n_servers], addresses[calls->n_servers]);
        if (status != WEIR_OK) {
            calls->n_servers++; /* half open, and to be closed */
            goto err_close;
        }
    }
    *out = calls;
    return WEIR_OK;

err_close:
    weir_server_calls_close(calls);
    return status;
}

void weir_server_calls_close(weir_server_calls *calls)
{
    if (calls == NULL)
        return;
    for (size_t i = 0; i < calls->n_servers; i++) {
        end_call(&calls->servers[i]);
        curl_easy_cleanup(calls->servers[i].easy);
        weir_free(calls->servers[i].answer);
    }
    curl_multi_cleanup(calls->multi);
    weir_security_free(&calls->kept);
    weir_free(calls->servers);
    weir_free(calls);
}

const char *weir_server_calls_address(const weir_server_calls *calls, size_t server)
{
    return calls->servers[server].address;
}

/* ---- calls -----------------------------------------------------------------------------------*/

static weir_status add_header(server_call *call, const char *line)
{
    struct curl_slist *longer = curl_slist_append(call->headers, line);
    if (longer == NULL)
        return weir_fail(WEIR_ERR_NO_MEMORY, "no memory for a call to %s", call->address);
    call->headers = longer;
    return WEIR_OK;
}

/* An empty Expect: 100-continue would cost each POST a second of servers that do not know it. */
static weir_status set_headers(server_call *call, bool is_post)
{
    char line[AUTHORIZATION_BYTES];
    weir_security_kept *kept = &call->calls->kept;
    weir_security_refresh(kept, false);
    weir_status status = WEIR_OK;
    if (is_post)
        status = add_header(call, "Content-Type: application/json");
    if (is_post && status == WEIR_OK)
        status = add_header(call, "Expect:");
    if (kept->security.token != NULL && status == WEIR_OK) {
        snprintf(line, sizeof(line), "Authorization: Bearer %s", kept->security.token);
        status = add_header(call, line);
    }
    return status;
}

static void set_method(server_call *call)
{
    if (call->body == NULL) {
        curl_easy_setopt(call->easy, CURLOPT_HTTPGET, 1L);
        return;
    }
    curl_easy_setopt(call->easy, CURLOPT_POST, 1L);
    curl_easy_setopt(call->easy, CURLOPT_POSTFIELDS, call->body);
    curl_easy_setopt(call->easy, CURLOPT_POSTFIELDSIZE, (long)strlen(call->body));
}

weir_status weir_server_calls_begin(weir_server_calls *calls, size_t server, const char *path,
                                    const char *body, unsigned timeout_ms)
{
    server_call *call = &calls->servers[server];
    char url[URL_BYTES];
    call->n_answer = 0;
    call->is_too_long = false;
    call->cause[0] = '\0';
    call->begun_ns = weir_now_ns();
    call->body = weir_strdup(body);
    weir_status status =
        body == NULL || call->body != NULL ? set_headers(call, body != NULL) : WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK) {
        snprintf(url, sizeof(url), "%s%s", call->address, path);
        set_method(call);
        curl_easy_setopt(call->easy, CURLOPT_URL, url);
        curl_easy_setopt(call->easy, CURLOPT_HTTPHEADER, call->headers);
        curl_easy_setopt(call->easy, CURLOPT_TIMEOUT_MS, (long)(timeout_ms > 0 ? timeout_ms : 1));
        CURLMcode added = curl_multi_add_handle(calls->multi, call->easy);
        call->is_under_way = added == CURLM_OK;
        if (added != CURLM_OK)
            status = weir_fail(WEIR_ERR_INTERNAL, "%s cannot be called: %s", call->address,
                               curl_multi_strerror(added));
    }
    if (status != WEIR_OK)
        end_call(call);
    return status;
}

void weir_server_calls_abandon(weir_server_calls *calls, size_t server)
{
    end_call(&calls->servers[server]);
}

/* ---- replies ---------------------------------------------------------------------------------*/

static weir_call_end end_of_status(long http_status)
{
    if (http_status >= 200 && http_status < 300)
        return WEIR_CALL_OK;
    return http_status == 404 ? WEIR_CALL_ABSENT : WEIR_CALL_REFUSED;
}

/* Whether the server can know of the call: bytes of it have left this machine. */
static bool was_sent(const server_call *call)
{
    long n_bytes = 0;
    curl_easy_getinfo(call->easy, CURLINFO_REQUEST_SIZE, &n_bytes);
    return n_bytes > 0;
}

static weir_call_end end_of(const server_call *call, CURLcode code, long http_status)
{
    if (call->is_too_long)
        return WEIR_CALL_GARBLED;
    if (code == CURLE_OK)
        return end_of_status(http_status);
    if (!was_sent(call))
        return WEIR_CALL_UNSENT;
    if (code == CURLE_OPERATION_TIMEDOUT)
        return WEIR_CALL_LATE;
    return code == CURLE_WEIRD_SERVER_REPLY || code == CURLE_UNSUPPORTED_PROTOCOL
               ? WEIR_CALL_GARBLED
               : WEIR_CALL_LOST;
}

static void fill_reply(server_call *call, CURLcode code, weir_server_reply *out)
{
    long http_status = 0;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &http_status);
    if (call->cause[0] == '\0' && code != CURLE_OK)
        snprintf(call->cause, sizeof(call->cause), "%s", curl_easy_strerror(code));
    if (call->is_too_long)
        snprintf(call->cause, sizeof(call->cause), "its answer has more than %zu bytes",
                 WEIR_SERVER_ANSWER_BYTES);
    weir_error_one_line(call->cause);
    call->answer[call->n_answer] = '\0';
    *out = (weir_server_reply){ .server = (size_t)(call - call->calls->servers),
                                .end = end_of(call, code, http_status),
                                .http_status = (unsigned)http_status,
                                .body = call->answer,
                                .n_body = call->n_answer,
                                .cause = call->cause,
                                .seconds = (double)(weir_now_ns() - call->begun_ns) / 1e9 };
}

static bool take_reply(weir_server_calls *calls, weir_server_reply *out)
{
    int n_left;
    for (CURLMsg *message; (message = curl_multi_info_read(calls->multi, &n_left)) != NULL;) {
        server_call *call = NULL;
        CURLcode code = message->data.result;
        if (message->msg != CURLMSG_DONE ||
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&call) != CURLE_OK)
            continue;
        fill_reply(call, code, out);
        end_call(call);
        return true;
    }
    return false;
}

bool weir_server_calls_wait(weir_server_calls *calls, unsigned timeout_ms, weir_server_reply *out)
{
    int n_running;
    curl_multi_perform(calls->multi, &n_running);
    if (take_reply(calls, out))
        return true;
    curl_multi_poll(calls->multi, NULL, 0, (int)timeout_ms, NULL);
    curl_multi_perform(calls->multi, &n_running);
    return take_reply(calls, out);
}

void weir_server_calls_wake(weir_server_calls *calls)
{
    curl_multi_wakeup(calls->multi);
}
