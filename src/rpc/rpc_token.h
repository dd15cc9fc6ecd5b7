/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_token.h - a bearer token, and the file that it is read from again when it was replaced.
 *
 * Secrets are rotated while fleets run, and not everywhere in the same moment: the token before
 * stays good for a while, to whom it is shown and by whom it is shown. A file that will not do
 * (empty, gone) changes nothing. One thread. Nothing here knows of sockets. */
#ifndef WEIR_RPC_RPC_TOKEN_H
#define WEIR_RPC_RPC_TOKEN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/clock.h"
#include "rpc/file_stamp.h"
#include "weir/status.h"

#define WEIR_TOKEN_BYTES 4096       /* the longest, with its end */
#define WEIR_TOKEN_GRACE_MS 120000u /* of the token before, from when its file was replaced */
#define WEIR_TOKEN_LOOK_AGAIN_MS 1000u

/* ERR_INVALID for what no header can carry. */
weir_status weir_token_check(const char *token, const char *whence);
/* ERR_IO, ERR_NOT_FOUND, ERR_INVALID naming the file. */
weir_status weir_token_read(const char *path, char out[WEIR_TOKEN_BYTES]);

/* Whether it is the token, in a time that does not tell how much of it is right. */
bool weir_token_is(const char *token, const void *bytes, size_t n_bytes);

typedef struct weir_token_watch {
    weir_file_stamp stamp;
    uint64_t looked_ns; /* when it was last the same as the file */
    weir_deadline next_look;
    weir_deadline before_until; /* 0: there is none before */
    bool is_warned, is_bad;     /* the file as it is will not do, and somebody knows */
    char now[WEIR_TOKEN_BYTES], before[WEIR_TOKEN_BYTES];
} weir_token_watch;

/* `token` is what was read of it; the next look reads it again. */
void weir_token_watch_init(weir_token_watch *watch, const char *token);
/* Looks whether the file is another: once per second at most, unless at_once. True: so is the
 * token. */
bool weir_token_watch_look(weir_token_watch *watch, const char *path, bool at_once);
/* NULL: it is no longer good, or there was none. */
const char *weir_token_watch_before(const weir_token_watch *watch);

#endif
