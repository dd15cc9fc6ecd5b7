/* SPDX-License-Identifier: Apache-2.0 */
/* no_web.c - stands for web.c in a build without libmicrohttpd. */
#include "base/error.h"
#include "directory/web.h"

weir_status weir_web_open(weir_directory_core *core, const char *listen,
                          const weir_rpc_security *security, weir_web **out)
{
    (void)core, (void)listen, (void)security, (void)out;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "this build serves no HTTP (WEIR_HTTP, libmicrohttpd-dev)");
}

void weir_web_close(weir_web *web)
{
    (void)web;
}

const char *weir_web_address(const weir_web *web)
{
    (void)web;
    return "";
}

bool weir_web_owns(uint64_t ticket)
{
    (void)ticket;
    return false;
}

bool weir_web_answer(weir_web *web, uint64_t ticket, weir_rpc_code code,
                     const ProtobufCMessage *response, const char *text)
{
    (void)web, (void)ticket, (void)code, (void)response, (void)text;
    return false;
}
