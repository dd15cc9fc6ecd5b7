/* SPDX-License-Identifier: Apache-2.0 */
/* run_state.h - an open run configuration, as the files that make it see it.
 *
 * run_config.c reads the text, run_values.c takes the tree's values, run_setup.c gives parts what
 * others say, run_rules.c and run_kernel.c judge. Each of them complains, none of them fails: only
 * memory can end it.
 */
#ifndef WEIR_CONFIG_RUN_STATE_H
#define WEIR_CONFIG_RUN_STATE_H

#include "base/arena.h"
#include "config/run_schema.h"
#include "config/yaml_tree.h"

#define WEIR_RUN_MAX_PROBLEMS 100u
#define WEIR_RUN_MAX_ITEMS 1024u

/* What is known about one row's value. */
typedef struct weir_run_state {
    const weir_yaml_node *node; /* where its value is written, wherever that is; NULL: nowhere */
    const weir_run_row *origin; /* the row it is written for */
    bool written;               /* for this very row */
    bool refused;               /* written and wrong: rules that read it are left out */
} weir_run_state;

struct weir_run_config {
    weir_arena arena;
    const char *file;
    const char *trainer_host; /* said beside the file; NULL: not */
    weir_run_settings settings;
    weir_run_state states[WEIR_RUN_MAX_ROWS];
    weir_run_value values[WEIR_RUN_MAX_ROWS]; /* once all is complete */
    bool is_there[WEIR_RUN_MAX_ROWS];
    weir_run_problem *problems;
    size_t n_problems;
    bool out_of_memory;
};

/* ---- run_config.c ----------------------------------------------------------------------------*/

/* The row must be there. */
weir_run_state *weir_run_state_of(weir_run_config *config, const char *path);
/* A member of the settings. */
void *weir_run_member(weir_run_config *config, const weir_run_row *row);

/* Adds a problem; text and hint live in the arena or for ever. One that is
 * there already, at the same place with the same text, is not added again. */
void weir_run_complain_at(weir_run_config *config, uint32_t line, uint32_t column, const char *path,
                          const char *text, const char *hint);
/* About a field: where its value is written, else where its innermost block begins. */
void weir_run_complain(weir_run_config *config, const char *path, const char *text,
                       const char *hint);
/* A line in the arena. NULL, with out_of_memory set, where there is none. */
const char *weir_run_line(weir_run_config *config, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- run_values.c ----------------------------------------------------------------------------*/

void weir_run_take_values(weir_run_config *config, const weir_yaml_node *root);
/* Writes a value that is known to fit. */
void weir_run_store(weir_run_config *config, const weir_run_row *row, const char *text);
/* The value as it would be written; of a list its first item. NULL where there is none. */
const char *weir_run_text_of(weir_run_config *config, const weir_run_row *row);

/* ---- the rest --------------------------------------------------------------------------------*/

void weir_run_set_up(weir_run_config *config);      /* run_setup.c */
void weir_run_check_rules(weir_run_config *config); /* run_rules.c */
/* run_kernel.c: that the inference model has a family and a conversion. */
void weir_run_check_kernel(weir_run_config *config);
/* The flag is on, wherever. */
bool weir_run_is_kernel_mode(const weir_run_settings *settings); /* run_rules.c */
void weir_run_keep_values(weir_run_config *config);              /* run_fields.c */

#endif
