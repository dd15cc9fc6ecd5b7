/* SPDX-License-Identifier: Apache-2.0 */
/* orchestrate.h - drives the inference servers of a run through each version that its trainer
 * broadcasts: init, pause, update, verify, resume.
 *
 * Speaks HTTP to servers (inference.h, or engines with the same calls) and gRPC to the trainer's
 * directory, or watches the marker files of teams that use them. At every moment it knows which
 * version each server holds, and it resumes none on a version that is mixed or not known.
 *
 *       trainer: version READY ──► pause all ──► update all ──► all hold it? ──► resume all
 *                                     │              │               │
 *                              abort: those that have installed it go back by themselves, or are
 *                                     told to install the old version again; resume those that
 *                                     hold that one whole
 *                              drop: the failed ones stay as they are, left out until they are back
 *                              wait: go on trying the failed ones until the bound, then as abort
 *
 * docs/broadcast.md says each phase, its calls and its bounds.
 *
 * Between versions it looks at the servers about once a second, says what has changed, and pauses one
 * that runs on something else than the fleet.
 *
 * Threads    one thread drives an orchestrator; weir_orchestrator_cancel() (from signal handlers
 *            too) and _server() may be called from another. `said` is called from the one that drives.
 * Ownership  the configuration must outlive it.
 * Errors     every wait has a bound; the line names the server, the step and the cause.
 */
#ifndef WEIR_ORCHESTRATE_H
#define WEIR_ORCHESTRATE_H

#include "weir/run_config.h"
#include "weir/weir.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weir_orchestrator weir_orchestrator;

typedef enum weir_server_state {
    WEIR_SERVER_UNKNOWN = 0, /* not asked yet, or it does not answer, or may still be installing */
    WEIR_SERVER_SERVING = 1, /* runs on `version` */
    WEIR_SERVER_PAUSED = 2,  /* holds `version` whole, paused */
    WEIR_SERVER_UPDATING = 3,
    WEIR_SERVER_BROKEN = 4,  /* holds no whole version, says so or is not known to: paused */
    WEIR_SERVER_DROPPED = 5, /* left out; taken up again once it answers and is initialised anew */
} weir_server_state;

typedef struct weir_server_info {
    const char *url;
    weir_server_state state;
    bool has_version;
    uint64_t version;
    char error[512];          /* the last; "" */
    double pause_s, update_s, resume_s; /* of the last version */
} weir_server_info;

typedef struct weir_orchestration_report {
    uint64_t version;
    uint32_t n_updated, n_dropped, n_servers;
    double seconds;           /* from when the version could be had to the last resume */
    double paused_s;          /* the longest that a server was paused */
} weir_orchestration_report;

typedef struct weir_orchestrator_options {
    size_t size;
    const weir_run_config *config; /* required, without problems */
    weir_security security;
    /* Said after every call of every server: "look", "init", "pause", "update", "resume", "revert".
     * NULL: nobody listens. */
    void (*said)(void *context, const char *step, const weir_server_info *server);
    void *context;
} weir_orchestrator_options;
#define WEIR_ORCHESTRATOR_OPTIONS_INIT WEIR_SIZED(weir_orchestrator_options)

WEIR_API weir_status weir_orchestrator_open(const weir_orchestrator_options *options,
                                            weir_orchestrator **out);
WEIR_API void weir_orchestrator_close(weir_orchestrator *orchestrator); /* accepts NULL */
/* POST /init_broadcaster to every server. ERR_TIMED_OUT, ERR_PEER_LOST: names the servers; with the
 * policy drop those are left out. A server without that call (404) is warned of and left out. Servers
 * that are found paused are resumed where all hold one and the same version whole (or all what they
 * came with), whether or not they could join. After an error it may be called again. */
WEIR_API weir_status weir_orchestrator_init(weir_orchestrator *orchestrator);
/* Waits, at most the configured timeout, for a version newer than the last and sees all servers
 * through it. On failure all servers that are resumed serve one version, the old one; others stay
 * paused and are named, with what they hold; the next call tries the same version again, or a newer
 * one. ERR_UNSUPPORTED: the trainer's directory is not Weir's, and there is no marker_dir. report may
 * be NULL. */
WEIR_API weir_status weir_orchestrator_step(weir_orchestrator *orchestrator,
                                            weir_orchestration_report *report);
/* Ends the wait for a version, now and from now on, with ERR_CANCELLED. A version that is under way is
 * seen through, so that nobody stays paused. */
WEIR_API void weir_orchestrator_cancel(weir_orchestrator *orchestrator);
WEIR_API size_t weir_orchestrator_servers(const weir_orchestrator *orchestrator);
/* A copy of what is known now. */
WEIR_API void weir_orchestrator_server(const weir_orchestrator *orchestrator, size_t i,
                                       weir_server_info *out);

/* ---- marker files, of the trainer's side -------------------------------------------------------*/

/* Before a run whose first version is `first_version` lets anybody find it: takes the markers of that
 * version and later ones away, which an earlier run has left. Those below stay: a run that goes on
 * with version N keeps what it has said. */
WEIR_API weir_status weir_markers_clear(const char *marker_dir, uint64_t first_version);
/* Touches MARKER_DIR/step_`version`/STABLE, and makes its directories: the version can be had. Takes
 * an NCCL_READY away that is there already. */
WEIR_API weir_status weir_markers_set_stable(const char *marker_dir, uint64_t version);
/* Waits, at most timeout_ms, until NCCL_READY is beside it: the servers have been told.
 * ERR_NOT_FOUND: the directory was deleted meanwhile, and nobody will. ERR_TIMED_OUT. */
WEIR_API weir_status weir_markers_await_ready(const char *marker_dir, uint64_t version,
                                              unsigned timeout_ms);

#ifdef __cplusplus
}
#endif
#endif
