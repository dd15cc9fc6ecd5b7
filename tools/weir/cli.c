/* SPDX-License-Identifier: Apache-2.0 */
/* cli.c - messages, options, figures and signals for the verbs. Knows no verb. */
#include "cli.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_LINE 4096 /* of a message: a name that is longer is cut */

/* ---- messages --------------------------------------------------------------------------------*/

int weir_cli_fail(void)
{
    const char *line = weir_last_error();
    return weir_cli_error("%s", line[0] != '\0' ? line : "failed without a reason");
}

/* Names come from files: what a terminal would obey, or take for another line, becomes a space. */
static char plain(char c)
{
    return (unsigned char)c < 0x20 || c == 0x7f ? ' ' : c;
}

static void print_line(weir_cli_word word, const char *before, const char *format, va_list args,
                       const char *after)
{
    char text[MAX_LINE], line[MAX_LINE + 256];
    vsnprintf(text, sizeof(text), format, args);
    for (char *c = text; *c != '\0'; c++)
        *c = plain(*c);
    snprintf(line, sizeof(line), "%s%s%s", before, text, after);
    weir_cli_log_say(word, line);
}

int weir_cli_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line(WEIR_CLI_ERROR, "", format, args, "");
    va_end(args);
    return WEIR_EXIT_FAILED;
}

int weir_cli_usage_error(const char *verb, const char *format, ...)
{
    char before[64], after[64];
    va_list args;
    snprintf(before, sizeof(before), "%s: ", verb);
    snprintf(after, sizeof(after), "; see 'weir %s --help'", verb);
    va_start(args, format);
    print_line(WEIR_CLI_ERROR, before, format, args, after);
    va_end(args);
    return WEIR_EXIT_USAGE;
}

void weir_cli_note(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line(WEIR_CLI_NOTE, "", format, args, "");
    va_end(args);
}

int weir_cli_put_plain(const char *text, int most)
{
    int n = 0;
    for (; n < most && text[n] != '\0'; n++)
        putchar(plain(text[n]));
    return n;
}

/* ---- options ---------------------------------------------------------------------------------*/

static void say_security(int option)
{
    static const char *const names[] = { "WEIR_TLS_CERTIFICATE", "WEIR_TLS_KEY", "WEIR_TLS_CA",
                                         "WEIR_TOKEN_FILE", "WEIR_INSECURE" };
    setenv(names[option - WEIR_CLI_SECURITY_FIRST], optarg != NULL ? optarg : "1", 1);
}

int weir_cli_option(int argc, char **argv, const char *shorts, const struct option *options)
{
    char all[64];
    snprintf(all, sizeof(all), ":v%s", shorts);
    opterr = 0;
    for (;;) {
        int option = getopt_long(argc, argv, all, options, NULL);
        if (option == 'v') {
            weir_cli_log_more();
            continue;
        }
        if (option == WEIR_CLI_LOG_FORMAT || option == WEIR_CLI_LOG_LEVEL) {
            if (option == WEIR_CLI_LOG_FORMAT ? weir_cli_log_format(argv[0], optarg)
                                              : weir_cli_log_level(argv[0], optarg))
                continue;
            return WEIR_CLI_BAD_OPTION;
        }
        if (option >= WEIR_CLI_SECURITY_FIRST) {
            say_security(option);
            continue;
        }
        if (option == ':') {
            weir_cli_usage_error(argv[0], "option '%s' needs a value", argv[optind - 1]);
            return WEIR_CLI_BAD_OPTION;
        }
        if (option != '?')
            return option;
        /* getopt names a bad short option in optopt alone: it may stand within "-ab". */
        if (optopt > 0 && optopt < 256 && strncmp(argv[optind - 1], "--", 2) != 0)
            weir_cli_usage_error(argv[0], "unknown option '-%c'", optopt);
        else
            weir_cli_usage_error(argv[0], "unknown option '%s'", argv[optind - 1]);
        return WEIR_CLI_BAD_OPTION;
    }
}

bool weir_cli_json_option(int argc, char **argv, bool *out_json)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' },
                                             WEIR_CLI_OPTIONS_END };
    *out_json = false;
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION)
            return false;
        *out_json = true;
    }
    return true;
}

bool weir_cli_number(const char *verb, const char *option, const char *text, uint64_t least,
                     uint64_t most, uint64_t *out)
{
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    bool digits = text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0;
    if (!digits || number < least || number > most) {
        weir_cli_usage_error(verb,
                             "%s takes a whole number from %" PRIu64 " to %" PRIu64 ", got '%s'",
                             option, least, most, text);
        return false;
    }
    *out = number;
    return true;
}

bool weir_cli_byte_count(const char *verb, const char *option, const char *text, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (shift != 0)
        end++;
    if (errno != 0 || text[0] < '0' || text[0] > '9' || *end != '\0' || number == 0 ||
        number > ((uint64_t)1 << 44) >> shift) {
        weir_cli_usage_error(verb, "%s takes bytes, as in 256M, got '%s'", option, text);
        return false;
    }
    *out = (uint64_t)number << shift;
    return true;
}

bool weir_cli_naming(const char *verb, const char *text, weir_naming *out)
{
    static const char *const names[] = { "hf", "hf_fused", "stacked" };
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (weir_naming)i;
            return true;
        }
    }
    weir_cli_usage_error(verb, "--naming takes hf, hf_fused or stacked, got '%s'", text);
    return false;
}

bool weir_cli_read_device(const char *verb, const char *text, weir_cli_device *out)
{
    static const char begin[] = "cuda:";
    char *end;
    *out = (weir_cli_device){ false, 0 };
    if (strcmp(text, "host") == 0)
        return true;
    if (strncmp(text, begin, strlen(begin)) == 0) {
        const char *digits = text + strlen(begin);
        unsigned long number = strtoul(digits, &end, 10);
        if (digits[0] >= '0' && digits[0] <= '9' && *end == '\0' && number < 1024) {
            *out = (weir_cli_device){ true, (unsigned)number };
            return true;
        }
    }
    weir_cli_usage_error(verb, "--device takes host or cuda:N, got '%s'", text);
    return false;
}

/* ---- results ---------------------------------------------------------------------------------*/

int weir_cli_print_json(json_t *taken)
{
    if (taken == NULL)
        return weir_cli_error("out of memory");
    int failed = json_dumpf(taken, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(taken);
    /* A write that failed is reported by weir_cli_close_stdout(), which knows why. */
    if (failed == 0)
        putchar('\n');
    return WEIR_EXIT_OK;
}

json_t *weir_cli_json_of(const char *text)
{
    if (text == NULL)
        return json_null();
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    return value != NULL ? value : json_string(text);
}

int weir_cli_close_stdout(int code)
{
    bool failed = ferror(stdout) != 0;
    errno = 0;
    if (fclose(stdout) == 0 && !failed)
        return code;
    return weir_cli_error("cannot write to stdout: %s", strerror(errno != 0 ? errno : EIO));
}

weir_cli_text weir_cli_bytes_text(uint64_t n_bytes)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB", "PB", "EB" };
    weir_cli_text out;
    double value = (double)n_bytes;
    size_t unit = 0;
    /* 999.5 would round to "1000": it belongs to the next unit. */
    for (; value >= 999.5 && unit + 1 < sizeof(units) / sizeof(units[0]); unit++)
        value /= 1000;
    int decimals = unit == 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    snprintf(out.text, sizeof(out.text), "%.*f %s", decimals, value, units[unit]);
    return out;
}

weir_cli_text weir_cli_rate_text(double bytes_per_second)
{
    bool known = isfinite(bytes_per_second) && bytes_per_second >= 0 && bytes_per_second < 1e19;
    weir_cli_text out = weir_cli_bytes_text(known ? (uint64_t)bytes_per_second : 0);
    size_t n = strlen(out.text);
    snprintf(out.text + n, sizeof(out.text) - n, "/s");
    return out;
}

weir_cli_text weir_cli_duration_text(double seconds)
{
    weir_cli_text out;
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e9)
        snprintf(out.text, sizeof(out.text), "?");
    else if (seconds < 1)
        snprintf(out.text, sizeof(out.text), "%.0f ms", seconds * 1e3);
    else if (seconds < 59.95)
        snprintf(out.text, sizeof(out.text), "%.1f s", seconds);
    else if (seconds < 3599.5)
        snprintf(out.text, sizeof(out.text), "%d min %02d s", (int)(seconds + 0.5) / 60,
                 (int)(seconds + 0.5) % 60);
    else
        snprintf(out.text, sizeof(out.text), "%d h %02d min", (int)(seconds / 60 + 0.5) / 60,
                 (int)(seconds / 60 + 0.5) % 60);
    return out;
}

double weir_cli_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- signals ---------------------------------------------------------------------------------*/

/* One who signals a process and then its group, as timeout(1) does, has asked once. */
#define SAME_REQUEST_S 0.5

static volatile sig_atomic_t stop_asked;
static volatile double stop_asked_at; /* written and read by the handler alone */
static void (*volatile stop_action)(void);

static void ask_to_stop(int signal_number)
{
    void (*action)(void) = stop_action;
    double now = weir_cli_now();
    if (stop_asked != 0 && now - stop_asked_at > SAME_REQUEST_S) {
        signal(signal_number, SIG_DFL);
        raise(signal_number);
        return;
    }
    if (stop_asked == 0)
        stop_asked_at = now;
    stop_asked = 1;
    if (action != NULL)
        action();
}

void weir_cli_on_stop(void (*action)(void))
{
    stop_action = action;
}

void weir_cli_catch_signals(void)
{
    struct sigaction action = { .sa_handler = ask_to_stop };
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGINT);
    sigaddset(&action.sa_mask, SIGTERM);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool weir_cli_stopped(void)
{
    return stop_asked != 0;
}
