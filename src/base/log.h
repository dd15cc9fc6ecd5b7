/* SPDX-License-Identifier: Apache-2.0 */
/* log.h - log lines for whoever set weir_log_set(); nothing is formatted when nobody listens. */
#ifndef WEIR_BASE_LOG_H
#define WEIR_BASE_LOG_H

#include "weir/weir.h"

void weir_log(weir_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
