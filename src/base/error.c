/* SPDX-License-Identifier: Apache-2.0 */
/* error.c - one line per thread, and the texts of the statuses. */
#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static _Thread_local weir_error_line last;

const char *weir_status_text(weir_status status)
{
    switch ((int)status) {
#define CASE(name, number, text) \
    case number:                 \
        return text;
        WEIR_STATUS_LIST(CASE)
#undef CASE
    default:
        return "unknown status";
    }
}

const char *weir_status_name(weir_status status)
{
    switch ((int)status) {
#define CASE(name, number, text) \
    case number:                 \
        return #name;
        WEIR_STATUS_LIST(CASE)
#undef CASE
    default:
        return "UNKNOWN";
    }
}

const char *weir_last_error(void)
{
    return last.text;
}

void weir_error_one_line(char *text)
{
    for (; *text != '\0'; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = ' ';
    }
}

weir_status weir_fail(weir_status status, const char *format, ...)
{
    weir_error_line line; /* the arguments may point into `last` */
    va_list args;
    va_start(args, format);
    vsnprintf(line.text, sizeof(line.text), format, args);
    va_end(args);
    weir_error_one_line(line.text);
    last = line;
    return status;
}

weir_status weir_fail_errno(const char *format, ...)
{
    int code = errno;
    char text[WEIR_ERROR_TEXT - 128];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    weir_status status = code == ENOENT   ? WEIR_ERR_NOT_FOUND
                         : code == ENOMEM ? WEIR_ERR_NO_MEMORY
                                          : WEIR_ERR_IO;
    return weir_fail(status, "%s: %s", text, strerror(code));
}

void weir_error_prefix(const char *format, ...)
{
    char prefix[WEIR_ERROR_TEXT / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof(prefix), format, args);
    va_end(args);
    weir_fail(WEIR_OK, "%s: %s", prefix, last.text);
}

void weir_error_save(weir_error_line *line)
{
    *line = last;
}

void weir_error_restore(const weir_error_line *line)
{
    last = *line;
}
