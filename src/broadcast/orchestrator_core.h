/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrator_core.h - what the files of an orchestrator share.
 *
 *     orchestrator.c           a handle: opened, one version after the other, closed
 *     orchestrator_watch.c     waits for the next version: the trainer's directory, or markers
 *     orchestrator_idle.c      looks at the servers meanwhile
 *     orchestrator_drive.c     makes the calls of a round (orchestrator_step.h), by server_call.h
 *     orchestrator_words.c     what calls and answers say, as JSON
 */
#ifndef WEIR_BROADCAST_ORCHESTRATOR_CORE_H
#define WEIR_BROADCAST_ORCHESTRATOR_CORE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/error.h"
#include "broadcast/orchestrator_step.h"
#include "broadcast/server_call.h"
#include "directory/client.h"
#include "rpc/rpc_security.h"
#include "weir/orchestrate.h"

typedef struct weir_driven_server {
    weir_server_info info;     /* with the lock */
    char cause[512];           /* why it failed in this round; "" */
    char trouble[256];         /* what was seen since, between rounds; "" */
    weir_server_order looking; /* between rounds: the call that is out */
    weir_deadline rests_until;
    uint64_t asked_ns, paused_ns; /* paused_ns 0: not paused in this round */
    double paused_s;
} weir_driven_server;

struct weir_orchestrator {
    weir_orchestrator_options options;
    const weir_run_settings *settings;
    weir_security_kept kept;
    weir_server_calls *calls;
    weir_round round;
    weir_round_server *servers;
    weir_driven_server *known;
    size_t n_servers;
    pthread_mutex_t lock;
    atomic_bool is_cancelled;
    weir_directory_client *client; /* with markers: asked whether a version is the trainer's */
    uint64_t revision;             /* of the directory, as seen last */
    bool has_last;
    uint64_t last;    /* version that the fleet was seen through, or came with */
    uint64_t version; /* of this round */
    unsigned timeout_ms, short_ms;
    weir_deadline deadline; /* of the way to the round's version */
    bool has_touched;
    weir_round_phase phase; /* as it was seen last, since phase_ns */
    size_t n_through;       /* servers that are through with it, and when the last one was */
    uint64_t phase_ns, through_ns;
};

/* ---- orchestrator_watch.c --------------------------------------------------------------------*/

weir_status weir_orchestrator_watch_open(weir_orchestrator *orchestrator);
/* Waits for a version newer than the last, at most timeout_ms. */
weir_status weir_orchestrator_await_version(weir_orchestrator *orchestrator, uint64_t *out);

/* ---- orchestrator_idle.c ---------------------------------------------------------------------*/

/* The same, while all servers are looked at again and again. */
weir_status weir_orchestrator_await_and_look(weir_orchestrator *orchestrator, uint64_t *out);

/* ---- orchestrator_drive.c --------------------------------------------------------------------*/

/* Until the round that has begun is over. */
void weir_orchestrator_drive(weir_orchestrator *orchestrator);
/* What is known of a server by now, for whoever asks. */
void weir_orchestrator_learn(weir_orchestrator *orchestrator, size_t i);
/* And said. */
void weir_orchestrator_say(weir_orchestrator *orchestrator, size_t i, weir_server_order order);

/* ---- orchestrator_words.c --------------------------------------------------------------------*/

const char *weir_order_path(weir_server_order order); /* "/update_weights" */

typedef struct weir_order_words {
    const char *host, *run, *marker_dir; /* marker_dir NULL: none */
    uint32_t port;
    bool kernel_mode;
    size_t server, n_servers;
    uint64_t version;
    double timeout_s;
} weir_order_words;
/* The body of a POST, "{}" where it has nothing to say; NULL of a GET, and out of memory. For
 * weir_free(). */
char *weir_order_body(weir_server_order order, const weir_order_words *words);

/* What a reply of HTTP comes to, and in `cause` why it is not what was asked for; "" where it is.
 * `run` is whose a server should be. */
void weir_order_answer(weir_server_order order, const weir_server_reply *reply, const char *run,
                       weir_server_answer *out, char *cause, size_t n_cause);
/* "version 7", "what it came with", "no whole version", "nobody knows what". */
void weir_held_text(const weir_held_key *held, char *text, size_t n_text);

#endif
