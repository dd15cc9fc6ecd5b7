/* SPDX-License-Identifier: Apache-2.0 */
/* redis_url.h - "redis://[USER:PASSWORD@]HOST:PORT[/DB]" in its parts.
 *
 * No text of a URL goes into errors or logs but host and port of a good one: any other part of it
 * may be a password. */
#ifndef WEIR_DIRECTORY_REDIS_URL_H
#define WEIR_DIRECTORY_REDIS_URL_H

#include "weir/status.h"

typedef struct weir_redis_url {
    char user[256], password[512]; /* "": none */
    char host[256];                /* without the brackets of an IPv6 address */
    unsigned port;                 /* 6379 when none is said */
    unsigned database;
    char who[288]; /* "redis HOST:PORT", for errors */
} weir_redis_url;

/* User and password may hold %XX. ERR_INVALID naming the part that is wrong. */
weir_status weir_redis_url_parse(const char *text, weir_redis_url *out);
/* Forgets the password. */
void weir_redis_url_close(weir_redis_url *url);

#endif
