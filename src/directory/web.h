/* SPDX-License-Identifier: Apache-2.0 */
/* web.h - the people's side of a directory, over HTTP: a page, what it shows as JSON, metrics, and
 * whether the directory is well.
 *
 *     /  /fleet.css  /fleet.js   the page; no data in it, so no token is asked for
 *     /healthz                   200 while the directory's thread lives
 *     /readyz                    200, or 503 with what is wrong with its log
 *     /metrics                   Prometheus
 *     /api/fleet                 ?model=&version=&after=REVISION&wait_ms=: weir_fleet_json(), as
 * soon as there is something newer, at the latest after 25 s
 *
 * Threads    the rpc server's.
 */
#ifndef WEIR_DIRECTORY_WEB_H
#define WEIR_DIRECTORY_WEB_H

#include "directory/directory_core.h"

typedef struct weir_web weir_web;

/* From the `begin` of `core->server`. `listen` is "HOST:PORT". Errors as weir_http_server_open().
 */
weir_status weir_web_open(weir_directory_core *core, const char *listen,
                          const weir_rpc_security *security, weir_web **out);
/* Once the rpc server is closed, before the core is. Accepts NULL. */
void weir_web_close(weir_web *web);
const char *weir_web_address(const weir_web *web); /* "HOST:PORT" */

/* What the core answers to tickets that are the web's. */
bool weir_web_owns(uint64_t ticket);
bool weir_web_answer(weir_web *web, uint64_t ticket, weir_rpc_code code,
                     const ProtobufCMessage *response, const char *text);

#endif
