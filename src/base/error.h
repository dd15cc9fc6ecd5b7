/* SPDX-License-Identifier: Apache-2.0 */
/* error.h - recording why a call failed.
 *
 * Whoever first decides the status records one line with weir_fail(); whoever forwards the status
 * is silent. The line is per thread: code that carries a failure from one thread to another copies
 * it with weir_error_save() and sets it again with weir_error_restore().
 */
#ifndef WEIR_BASE_ERROR_H
#define WEIR_BASE_ERROR_H

#include <stdarg.h>

#include "weir/status.h"

#define WEIR_ERROR_TEXT 1024

/* Records the line and returns `status`. The text is one line without "weir:" and newline. */
weir_status weir_fail(weir_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3), cold));

/* ERR_IO (or NOT_FOUND, NO_MEMORY by errno) with ": strerror(errno)" appended. */
weir_status weir_fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2), cold));

/* Puts "prefix: " before the recorded line: for a caller who alone knows the file or the rank. */
void weir_error_prefix(const char *format, ...) __attribute__((format(printf, 1, 2), cold));

/* Turns control characters into spaces: newlines would break the promise of one line, and bytes
 * from outside may hold any. */
void weir_error_one_line(char *text);

typedef struct weir_error_line {
    char text[WEIR_ERROR_TEXT];
} weir_error_line;
void weir_error_save(weir_error_line *line);
void weir_error_restore(const weir_error_line *line);

#endif
