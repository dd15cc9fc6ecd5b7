/* SPDX-License-Identifier: Apache-2.0 */
/* run_schema.h - the one table of what a run configuration may hold.
 *
 * Reading, defaults, what a part takes from another, unknown keys, `weir config schema` and the
 * documentation all go by its rows. A row without a member is a block that is always there.
 */
#ifndef WEIR_CONFIG_RUN_SCHEMA_H
#define WEIR_CONFIG_RUN_SCHEMA_H

#include "weir/run_config.h"

typedef enum weir_run_kind {
    WEIR_RUN_BLOCK,
    WEIR_RUN_TEXT,
    WEIR_RUN_LIST,
    WEIR_RUN_INTEGER,
    WEIR_RUN_BOOLEAN,
    WEIR_RUN_CHOICE,
} weir_run_kind;

typedef struct weir_run_row {
    const char *path;
    weir_run_kind kind;
    bool has_member;
    size_t offset; /* of its member in weir_run_settings; of a block, of its `present` */
    const char *default_value, *from, *choices;
    uint32_t least, most;
    const char *help;
} weir_run_row;

#define WEIR_RUN_MAX_ROWS 80u

/* All rows, in the order in which what one takes from another is there already. */
const weir_run_row *weir_run_rows(size_t *out_n_rows);
/* NULL when there is none. */
const weir_run_row *weir_run_row_of(const char *path);
/* The row `path` of the first n bytes, "trainer" of "trainer.model" with n 7. NULL when none. */
const weir_run_row *weir_run_row_of_bytes(const char *path, size_t n_bytes);
/* Of rows that lie directly in block `path` ("" is the whole), the one whose key is nearest to
 * `key`; or, where none of them is near, one elsewhere whose key is the same. */
const weir_run_row *weir_run_nearest(const char *path, const char *key);
/* Of words with | between them, the index of the one that is `word`; -1 when none is. */
int weir_run_choice_of(const char *choices, const char *word);
/* How many letters to put in, take out or change. */
size_t weir_run_distance(const char *a, const char *b);
/* The last word of a path. */
const char *weir_run_key_of(const char *path);

#endif
