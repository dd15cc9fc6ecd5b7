/* SPDX-License-Identifier: Apache-2.0 */
/* markers.h - empty files by which a trainer and an orchestrator tell each other where a version
 * is: STABLE and NCCL_READY in MARKER_DIR/step_N.
 *
 * Looked for again and again, since the directory may be on another machine, whose changes no
 * notification tells of. Directories may be deleted at any moment.
 */
#ifndef WEIR_BROADCAST_MARKERS_H
#define WEIR_BROADCAST_MARKERS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "weir/status.h"

#define WEIR_MARKER_STABLE "STABLE"
#define WEIR_MARKER_READY "NCCL_READY"

/* Of MARKER_DIR/step_`version`. With `makes`, directories that are missing are made; else
 * ERR_NOT_FOUND. */
weir_status weir_marker_touch(const char *marker_dir, uint64_t version, const char *name,
                              bool makes);
/* Waits, at most timeout_ms or until *cancelled (NULL: never), for that marker. ERR_NOT_FOUND: its
 * directory was deleted; ERR_TIMED_OUT, ERR_CANCELLED. */
weir_status weir_marker_await(const char *marker_dir, uint64_t version, const char *name,
                              unsigned timeout_ms, const atomic_bool *cancelled);

/* The greatest version up to `most` that has the marker STABLE; has_last: of those above `last`.
 * ERR_NOT_FOUND: there is none, or no marker_dir. */
weir_status weir_marker_newest(const char *marker_dir, bool has_last, uint64_t last, uint64_t most,
                               uint64_t *out);

#endif
