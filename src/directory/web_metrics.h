/* SPDX-License-Identifier: Apache-2.0 */
/* web_metrics.h - what /metrics says: docs/operations.md lists it. */
#ifndef WEIR_DIRECTORY_WEB_METRICS_H
#define WEIR_DIRECTORY_WEB_METRICS_H

#include "directory/directory_core.h"
#include "directory/metrics_text.h"
#include "rpc/http_server.h"

/* Of the whole fleet, at this time of the log's clock. *out is in the arena. */
weir_status weir_web_metrics(const weir_directory_core *core, const weir_http_counts *http,
                             uint64_t now_ms, weir_arena *arena, weir_metrics_text *out);

#endif
