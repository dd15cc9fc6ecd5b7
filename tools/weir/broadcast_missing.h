/* SPDX-License-Identifier: Apache-2.0 */
/* broadcast_missing.h - which inference workers of a run do not hold a version, by rank.
 */
#ifndef WEIR_TOOLS_BROADCAST_MISSING_H
#define WEIR_TOOLS_BROADCAST_MISSING_H

#include <stddef.h>
#include <stdint.h>

#include "weir/run_config.h"

/* "inference rank 3 (server 1, dp 0, tp 0) has not joined, rank 4 (server 1, dp 0, tp 1) holds
 * version 6; went back: inference rank 1 (server 0, dp 0, tp 0)", as the directory says; "trainer
 * rank 1 has not published it" instead where the version lacks a rank; "" where nobody is missing,
 * or it does not say. Returns how many inference workers do not hold it; all, where it does not
 * say. */
uint32_t weir_broadcast_missing(const weir_run_settings *settings, const char *directory,
                                uint64_t version, char *text, size_t n_text);

#endif
