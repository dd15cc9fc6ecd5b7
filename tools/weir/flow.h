/* SPDX-License-Identifier: Apache-2.0 */
/* flow.h - what publish, receive and verify have in common: their options, their reports.
 */
#ifndef WEIR_TOOLS_FLOW_H
#define WEIR_TOOLS_FLOW_H

#include "cli.h"

#define WEIR_FLOW_MAX_IGNORE 64

/* NULL or 0: not given. Strings are argv's. */
typedef struct weir_flow_options {
    const char *directory, *model, *run, *name;
    const char *family, *layout, *conversion, *config;
    const char *transport, *transport_directory, *listen;
    const char *replica_mesh, *replica_experts; /* of the engines; NULL: of one worker */
    uint32_t worker;                            /* receive, verify: within one of them */
    weir_wire wire;
    const char *ignore[WEIR_FLOW_MAX_IGNORE];
    size_t n_ignore;
    int drill_signal; /* for drills: raised at this stop of this version; 0: never */
    weir_stop drill_stop;
    bool drill_midst;       /* when some of the stop's bytes have moved, not when it is entered */
    uint64_t drill_version; /* WEIR_LATEST: of any */
    unsigned n_threads, timeout_ms, lease_ms;
    bool keep_masters, as_json;
} weir_flow_options;

/* Long options that every flow verb takes; the verb's own values begin at WEIR_FLOW_OWN_OPTION. */
#define WEIR_FLOW_OWN_OPTION 512
#define WEIR_FLOW_LONG_OPTIONS                                                                     \
    { "directory", required_argument, NULL, 256 }, { "model", required_argument, NULL, 257 },      \
        { "run", required_argument, NULL, 258 }, { "name", required_argument, NULL, 259 },         \
        { "family", required_argument, NULL, 260 }, { "layout", required_argument, NULL, 261 },    \
        { "conversion", required_argument, NULL, 262 },                                            \
        { "config", required_argument, NULL, 263 }, { "transport", required_argument, NULL, 264 }, \
        { "transport-directory", required_argument, NULL, 265 },                                   \
        { "listen", required_argument, NULL, 266 }, { "ignore", required_argument, NULL, 267 },    \
        { "threads", required_argument, NULL, 268 }, { "timeout", required_argument, NULL, 269 },  \
        { "lease", required_argument, NULL, 270 }, { "keep-masters", no_argument, NULL, 271 },     \
        { "json", no_argument, NULL, 272 }, { "die-at", required_argument, NULL, 273 },            \
        { "stall-at", required_argument, NULL, 274 },                                              \
        { "replica-mesh", required_argument, NULL, 275 }, WEIR_CLI_SECURITY_OPTIONS,               \
        { "replica-experts", required_argument, NULL, 276 },                                       \
        { "wire", required_argument, NULL, 278 },                                                  \
    {                                                                                              \
        "worker", required_argument, NULL, 277                                                     \
    }

#define WEIR_FLOW_USAGE                                                                          \
    "  --directory HOST:PORT       the directory (see `weir serve`); several over one store:\n"  \
    "                              HOST:PORT,HOST:PORT\n"                                        \
    "  --model NAME                what replicas and trainers call the model (default: model)\n" \
    "  --run NAME                  tells training runs of one model apart (default: default)\n"  \
    "  --family NAME               see `weir families` (default: by config.json's model_type)\n" \
    "  --layout NAME               engine layout of the family\n"                                \
    "  --conversion NAME           see `weir formats` (default: by config.json)\n"               \
    "  --config PATH               the engine's config.json (default: the one beside SRC)\n"     \
    "  --wire kernel|checkpoint    publish, receive: what travels, bytes as kernels read them\n"     \
    "                              or bf16 under Hugging Face's names, for each worker to\n"       \
    "                              convert (default: kernel)\n"                                     \
    "  --keep-masters              quantise F32 masters without rounding them to bf16\n"         \
    "  --ignore GLOB               leave out source tensors of that name; may be repeated\n"     \
    "  --transport NAME            see `weir info` (default: the first available)\n"             \
    "  --transport-directory DIR   the shared directory of transport file\n"                     \
    "  --replica-mesh MESH         engines of several workers: tp=4,ep=8,dp=2,pp=2, see `weir "  \
    "plan`\n"                                                                                    \
    "  --replica-experts JSON      [[0,1],[2,3]]: expert ids of each of their expert ranks\n"    \
    "  --worker N                  receive, verify: which worker of one such engine\n"           \
    "  --listen HOST               where the manifest service listens (default: 127.0.0.1)\n"    \
    "  --threads N                 default: one per core\n"                                      \
    "  --timeout SECONDS           bound of every wait (default: 60)\n"                          \
    "  --lease SECONDS             how long the directory believes in a silent worker "          \
    "(default: 90)\n" WEIR_CLI_SECURITY_USAGE                                                    \
    "  --die-at STOP[+][:VERSION]  end with SIGKILL at that stop of a refit, or (+) in the\n"    \
    "                              midst of its bytes (for drills)\n"                            \
    "  --stall-at STOP[+][:VERSION]  halt there with SIGSTOP (for drills)\n"                     \
    "  --json                      one JSON object per line and version\n"

/* "kernel" or "checkpoint"; WEIR_EXIT_OK, or an exit code after a message that names `option`. */
int weir_flow_read_wire(const char *verb, const char *option, const char *text, weir_wire *out);
/* Takes one of the options above; WEIR_EXIT_OK, or an exit code after a message. */
int weir_flow_take_option(const char *verb, int option, weir_flow_options *flow);

/* A checkpoint and the config.json that goes with it (NULL when there is none). */
typedef struct weir_flow_source {
    weir_checkpoint *checkpoint;
    char config[4096]; /* "" when there is none */
} weir_flow_source;
/* False after having printed the error. */
bool weir_flow_source_open(const weir_flow_options *flow, const char *const *paths, size_t n_paths,
                           weir_flow_source *out);
void weir_flow_source_close(weir_flow_source *source); /* accepts a zeroed one */

/* The progress function of every flow verb; its context is the weir_flow_options. */
void weir_flow_progress(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                        uint64_t total_bytes);
/* Takes the bar off the terminal: before any message. */
void weir_flow_progress_end(void);

/* One report: a compact JSON line, or a line of text. `what`: "published", "installed". */
void weir_flow_print_report(const weir_flow_options *flow, const char *what,
                            const weir_report *report);
/* The same as an object, to which the caller may add. */
json_t *weir_flow_report_json(const char *what, const weir_report *report);
/* Prints one compact line at once and frees the object. */
void weir_flow_print_line(json_t *taken);

#endif
