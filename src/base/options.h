/* SPDX-License-Identifier: Apache-2.0 */
/* options.h - options structs of callers that were built against another version. */
#ifndef WEIR_BASE_OPTIONS_H
#define WEIR_BASE_OPTIONS_H

#include <stddef.h>

#include "weir/status.h"

/* Copies the struct that `given` points to, which begins with its own size, into `own`: a shorter
 * one leaves the rest zero, which is the default; a longer one may only have zeros where this
 * version has nothing. ERR_INVALID, naming `what`, otherwise, for NULL and for a size that cannot
 * be. own's size field is own_bytes afterwards. */
weir_status weir_options_read(const void *given, const char *what, void *own, size_t own_bytes);

#endif
