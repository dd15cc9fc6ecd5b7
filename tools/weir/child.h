/* SPDX-License-Identifier: Apache-2.0 */
/* child.h - child processes of the demo: started, talked to by lines, ended for certain.
 *
 * Threads    one.
 * Ownership  a child owns its pipes and its process until weir_child_end().
 * Errors     functions print their own line ("trainer 0 ended: exit code 1") and return false.
 * Waits      every one has a deadline. A child's stderr is the parent's; it dies with the parent.
 */
#ifndef WEIR_TOOLS_CHILD_H
#define WEIR_TOOLS_CHILD_H

#include <sys/types.h>

#include "cli.h"

#define WEIR_CHILD_LINE_BYTES 65536

/* A command line being put together. */
#define WEIR_CHILD_MAX_ARGUMENTS 64
typedef struct weir_arguments {
    char *items[WEIR_CHILD_MAX_ARGUMENTS]; /* NULL-terminated; borrowed */
    int n;
} weir_arguments;
/* Appends option (NULL: none) and value; nothing at all when value is NULL. */
void weir_arguments_add(weir_arguments *arguments, const char *option, const char *value);

typedef struct weir_child {
    char name[64]; /* "trainer 0", in messages */
    pid_t pid;     /* 0 when there is none */
    int in, out;   /* its stdin and stdout, -1 when closed */
    size_t n_buffered;
    char buffer[WEIR_CHILD_LINE_BYTES];
} weir_child;

/* Runs this very program with `argv` (argv[0] included, NULL-terminated). */
bool weir_child_start(weir_child *child, const char *name, char *const *argv);
/* False once it has ended, or was never started. */
bool weir_child_runs(const weir_child *child);
/* Sends one line. */
bool weir_child_send(weir_child *child, const char *line);
/* Reads the next line of its stdout (without the newline) into `line`. False when it ends, or
 * `timeout_s` passes. */
bool weir_child_read_line(weir_child *child, double timeout_s, char line[WEIR_CHILD_LINE_BYTES]);
/* The next line as a JSON object; the caller frees it. NULL as above. */
json_t *weir_child_read_json(weir_child *child, double timeout_s);
/* Asks it to end, waits up to two seconds, then kills it. Accepts one that was never started.
 * Returns its exit code, 128 + the signal that ended it, or -1. */
int weir_child_end(weir_child *child);

/* Runs this very program to its end; its stdout is one JSON object (NULL: it failed; the line was
 * printed by it or by us). *out_code is its exit code. */
json_t *weir_child_run_json(const char *name, char *const *argv, double timeout_s, int *out_code);

#endif
