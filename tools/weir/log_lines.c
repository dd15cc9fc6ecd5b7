/* SPDX-License-Identifier: Apache-2.0 */
/* log_lines.c - what the command line says on stderr: lines for people, or a JSON object per line.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"

static weir_log_level most = WEIR_LOG_WARN;
static bool as_json;

/* "2026-03-01T12:00:00.123Z" */
static void write_time(char *text, size_t n_text)
{
    struct timespec now;
    struct tm day;
    char seconds[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &day);
    strftime(seconds, sizeof(seconds), "%Y-%m-%dT%H:%M:%S", &day);
    snprintf(text, n_text, "%s.%03ldZ", seconds, now.tv_nsec / 1000000);
}

/* Names from outside may not be UTF-8. */
static json_t *text_value(const char *text)
{
    json_t *value = json_string(text);
    return value != NULL ? value : json_string("(not UTF-8)");
}

static json_t *field_value(const weir_log_field *field)
{
    if (!field->is_number)
        return text_value(field->text);
    errno = 0;
    long long whole = strtoll(field->text, NULL, 10);
    if (strchr(field->text, '.') != NULL)
        return json_real(strtod(field->text, NULL));
    return errno == 0 ? json_integer(whole) : text_value(field->text);
}

static void print_json(const char *level, const char *line, const weir_log_field *fields,
                       size_t n_fields)
{
    char now[64];
    write_time(now, sizeof(now));
    json_t *object =
        json_pack("{s:s, s:s, s:o}", "ts", now, "level", level, "msg", text_value(line));
    for (size_t i = 0; i < n_fields; i++)
        json_object_set_new(object, fields[i].name, field_value(&fields[i]));
    char *text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
    if (text != NULL)
        fprintf(stderr, "%s\n", text);
    free(text);
}

static void print_record(void *context, weir_log_level level, const char *line,
                         const weir_log_field *fields, size_t n_fields)
{
    static const char *const words[] = { "", "error", "warning", "info", "debug" };
    static const char *const names[] = { "", "error", "warn", "info", "debug" };
    (void)context;
    if (as_json)
        print_json(names[level], line, fields, n_fields);
    else
        fprintf(stderr, "weir: %s: %s\n", words[level], line);
}

void weir_cli_log_begin(void)
{
    weir_log_set_structured(print_record, NULL, most);
}

void weir_cli_log_more(void)
{
    if (most < WEIR_LOG_DEBUG)
        most = (weir_log_level)(most + 1);
    weir_cli_log_begin();
}

void weir_cli_log_say(weir_cli_word word, const char *line)
{
    if (as_json)
        print_json(word == WEIR_CLI_NOTE ? "info" : "error", line, NULL, 0);
    else
        fprintf(stderr, "weir: %s%s\n", word == WEIR_CLI_NOTE ? "note: " : "", line);
}

static bool refuse(const char *verb, const char *option, const char *wanted, const char *text)
{
    if (verb != NULL)
        weir_cli_usage_error(verb, "%s takes %s, got '%s'", option, wanted, text);
    else
        weir_cli_error("%s takes %s, got '%s'; see 'weir --help'", option, wanted, text);
    return false;
}

bool weir_cli_log_format(const char *verb, const char *text)
{
    if (strcmp(text, "json") != 0 && strcmp(text, "text") != 0)
        return refuse(verb, "--log-format", "text or json", text);
    as_json = text[0] == 'j';
    return true;
}

bool weir_cli_log_level(const char *verb, const char *text)
{
    static const char *const names[] = { "error", "warn", "info", "debug" };
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) == 0) {
            most = (weir_log_level)(WEIR_LOG_ERROR + i);
            weir_cli_log_begin();
            return true;
        }
    }
    return refuse(verb, "--log-level", "error, warn, info or debug", text);
}
