/* SPDX-License-Identifier: Apache-2.0 */
/* cli.h - what the verbs of the command line share: exit codes, messages, options, figures.
 *
 * Threads    one thread, save for weir_cli_stopped(), which may be asked from any.
 * Ownership  text values are returned by value; nothing here keeps what it is given, the progress
 *            bar's label excepted.
 * Errors     stdout carries results alone; one line on stderr says what went wrong, and the exit
 *            code who: 1 the world, 2 the command line.
 */
#ifndef WEIR_TOOLS_CLI_H
#define WEIR_TOOLS_CLI_H

#include <getopt.h>
#include <jansson.h>

#include "weir/weir.h"

#define WEIR_EXIT_OK 0
#define WEIR_EXIT_FAILED 1
#define WEIR_EXIT_USAGE 2

/* ---- who may talk to whom --------------------------------------------------------------------*/

/* For verbs that listen or call: weir_cli_option() takes them itself, and says them to the library
 * (and to other programs that the verb starts) by its environment. */
#define WEIR_CLI_SECURITY_FIRST 2048
#define WEIR_CLI_SECURITY_OPTIONS                                                                \
    { "tls-cert", required_argument, NULL, 2048 }, { "tls-key", required_argument, NULL, 2049 }, \
        { "tls-ca", required_argument, NULL, 2050 },                                             \
        { "token-file", required_argument, NULL, 2051 },                                         \
    {                                                                                            \
        "insecure", no_argument, NULL, 2052                                                      \
    }
#define WEIR_CLI_SECURITY_USAGE                                                                   \
    "  --tls-cert FILE, --tls-key FILE   PEM: what listens speaks TLS alone; shown where it "     \
    "calls\n"                                                                                     \
    "  --tls-ca FILE               PEM, or 'system': calls with TLS alone and believes whom it\n" \
    "                              signed; where it listens, callers must show such a "           \
    "certificate\n"                                                                               \
    "  --token-file FILE           its bearer token is sent with every call, asked of callers\n"  \
    "  --insecure                  listens beyond this machine without certificate and token\n"

/* ---- verbs -----------------------------------------------------------------------------------*/

/* argv[0] is the verb's whole name, "bench convert" say. Returns an exit code. */
typedef int (*weir_verb_fn)(int argc, char **argv);

typedef struct weir_verb {
    const char *name;    /* one word or two */
    const char *summary; /* one line for `weir --help` */
    const char *usage;   /* what `weir VERB --help` prints; NULL: the verb does that itself */
    weir_verb_fn run;    /* NULL: not in this build */
} weir_verb;

/* A verb's file cmd_<verb>.c defines these two. */
#define WEIR_VERB_DECLARE(verb)                 \
    int weir_cmd_##verb(int argc, char **argv); \
    extern const char weir_usage_##verb[];

WEIR_VERB_DECLARE(convert)
WEIR_VERB_DECLARE(formats)
WEIR_VERB_DECLARE(families)
WEIR_VERB_DECLARE(resolve)
WEIR_VERB_DECLARE(inspect)
WEIR_VERB_DECLARE(info)
WEIR_VERB_DECLARE(synth)
WEIR_VERB_DECLARE(plan)
WEIR_VERB_DECLARE(config_check)
WEIR_VERB_DECLARE(config_show)
WEIR_VERB_DECLARE(config_schema)
WEIR_VERB_DECLARE(serve)
WEIR_VERB_DECLARE(publish)
WEIR_VERB_DECLARE(receive)
WEIR_VERB_DECLARE(replica)
WEIR_VERB_DECLARE(broadcast)
WEIR_VERB_DECLARE(orchestrate)
WEIR_VERB_DECLARE(verify)
WEIR_VERB_DECLARE(discover)
WEIR_VERB_DECLARE(trace)
WEIR_VERB_DECLARE(top)
WEIR_VERB_DECLARE(demo)
WEIR_VERB_DECLARE(error)
WEIR_VERB_DECLARE(bench_convert)
WEIR_VERB_DECLARE(bench_copy)
WEIR_VERB_DECLARE(bench_refit)

/* ---- messages --------------------------------------------------------------------------------*/

/* "weir: <the library's last error>" on stderr. Returns WEIR_EXIT_FAILED. */
int weir_cli_fail(void);
/* "weir: <line>" on stderr. Returns WEIR_EXIT_FAILED. */
int weir_cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* "weir: <verb>: <line>; see 'weir <verb> --help'". Returns WEIR_EXIT_USAGE. */
int weir_cli_usage_error(const char *verb, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* "weir: note: <line>" on stderr, for what the user should know and need not act upon. */
void weir_cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* On stdout, at most `most` bytes of a text that came from a file, control characters as spaces, as
 * in the lines above. Returns the bytes printed. */
int weir_cli_put_plain(const char *text, int most);

/* ---- options ---------------------------------------------------------------------------------*/

/* Ends the array of a verb's long options. */
#define WEIR_CLI_LOG_FORMAT 1024
#define WEIR_CLI_LOG_LEVEL 1025
#define WEIR_CLI_OPTIONS_END                                            \
    { "verbose", no_argument, NULL, 'v' },                              \
        { "log-format", required_argument, NULL, WEIR_CLI_LOG_FORMAT }, \
        { "log-level", required_argument, NULL, WEIR_CLI_LOG_LEVEL },   \
    {                                                                   \
        NULL, 0, NULL, 0                                                \
    }

#define WEIR_CLI_BAD_OPTION '?'

/* getopt_long() with the verb's name in argv[0]. `shorts` lists the verb's own short options
 * ("o:"). -v, --log-format and --log-level are dealt with here. Returns -1 after the last option,
 * WEIR_CLI_BAD_OPTION after having printed the usage error (return WEIR_EXIT_USAGE then). */
int weir_cli_option(int argc, char **argv, const char *shorts, const struct option *options);

/* The options of a verb that has --json alone. False after having printed the usage error. */
bool weir_cli_json_option(int argc, char **argv, bool *out_json);

/* Reads a whole number in [least, most]. False after having printed the usage error. */
bool weir_cli_number(const char *verb, const char *option, const char *text, uint64_t least,
                     uint64_t most, uint64_t *out);

/* Reads a number of bytes from 1, with K, M, G or nothing behind it. False after having printed the
 * usage error. */
bool weir_cli_byte_count(const char *verb, const char *option, const char *text, uint64_t *out);

/* Reads "hf", "hf_fused" or "stacked". False after having printed the usage error. */
bool weir_cli_naming(const char *verb, const char *text, weir_naming *out);

/* Where memory lies. */
typedef struct weir_cli_device {
    bool cuda;
    unsigned number; /* of the GPU */
} weir_cli_device;
/* Reads "host" or "cuda:N". False after having printed the usage error. */
bool weir_cli_read_device(const char *verb, const char *text, weir_cli_device *out);

/* Log lines go to stderr: warnings at first, more with each -v. */
void weir_cli_log_begin(void);
void weir_cli_log_more(void);
/* "text" or "json"; "error", "warn", "info" or "debug". verb NULL: before one. False after having
 * printed the usage error. */
bool weir_cli_log_format(const char *verb, const char *text);
bool weir_cli_log_level(const char *verb, const char *text);
/* A line of the command line's own, whatever the level. */
typedef enum weir_cli_word {
    WEIR_CLI_ERROR,
    WEIR_CLI_NOTE,
} weir_cli_word;
void weir_cli_log_say(weir_cli_word word, const char *line);

/* ---- results ---------------------------------------------------------------------------------*/

/* Prints the object, indented, and frees it. NULL is out of memory. Returns an exit code. */
int weir_cli_print_json(json_t *taken);
/* Parses JSON text into a value, or wraps it as a string when it is none; NULL gives null. */
json_t *weir_cli_json_of(const char *text);
/* Flushes and closes stdout: a full disk must not look like success. Returns `code`, or
 * WEIR_EXIT_FAILED after a message. */
int weir_cli_close_stdout(int code);

/* A short text, by value: printf("%s", weir_cli_bytes_text(n).text). */
typedef struct weir_cli_text {
    char text[32];
} weir_cli_text;
weir_cli_text weir_cli_bytes_text(uint64_t n_bytes);       /* "1.50 GB", decimal */
weir_cli_text weir_cli_rate_text(double bytes_per_second); /* "12.3 GB/s" */
weir_cli_text weir_cli_duration_text(double seconds);      /* "1 min 05 s" */
double weir_cli_now(void);                                 /* monotonic seconds */

/* ---- signals ---------------------------------------------------------------------------------*/

/* SIGINT and SIGTERM ask to stop instead of killing; a second one kills. */
void weir_cli_catch_signals(void);
bool weir_cli_stopped(void);
/* Runs in the signal handler: async-signal-safe calls only. NULL: nothing. */
void weir_cli_on_stop(void (*action)(void));

/* ---- progress bar ----------------------------------------------------------------------------*/

/* One line on stderr, redrawn in place: share, bytes, rate, time left. Drawn on a terminal, or when
 * it was forced (--progress), and then at most ten times a second. */
typedef struct weir_progress_bar {
    const char *label;
    uint64_t total_bytes, done_bytes;
    double begun, drawn;
    bool visible, terminal;
} weir_progress_bar;
void weir_progress_bar_begin(weir_progress_bar *bar, const char *label, uint64_t total_bytes,
                             bool forced);
void weir_progress_bar_update(weir_progress_bar *bar, uint64_t done_bytes);
/* Leaves a clean line behind: call it before any message. */
void weir_progress_bar_end(weir_progress_bar *bar);

#endif
