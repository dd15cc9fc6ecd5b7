/* SPDX-License-Identifier: Apache-2.0 */
/* run_fields.c - the fields of a run configuration, and what each holds, for programs that list
 * them. */
#include <string.h>

#include "config/run_state.h"

/* ---- fields ----------------------------------------------------------------------------------*/

static weir_run_field field_of(const weir_run_row *row)
{
    static const char *const types[] = {
        [WEIR_RUN_BLOCK] = "block",     [WEIR_RUN_TEXT] = "text",       [WEIR_RUN_LIST] = "list",
        [WEIR_RUN_INTEGER] = "integer", [WEIR_RUN_BOOLEAN] = "boolean", [WEIR_RUN_CHOICE] = "choice"
    };
    return (weir_run_field){ .path = row->path,
                             .type = types[row->kind],
                             .default_value = row->default_value,
                             .from = row->from,
                             .choices = row->choices,
                             .least = row->least,
                             .most = row->most,
                             .optional = row->kind == WEIR_RUN_BLOCK && row->has_member,
                             .help = row->help };
}

size_t weir_run_fields(weir_run_field *fields, size_t n_fields)
{
    size_t n_rows;
    const weir_run_row *rows = weir_run_rows(&n_rows);
    for (size_t i = 0; i < n_rows && i < n_fields; i++)
        fields[i] = field_of(&rows[i]);
    return n_rows;
}

/* ---- values ----------------------------------------------------------------------------------*/

/* A block that the file may leave out is there, and so are all around it. */
static bool is_there(weir_run_config *config, const weir_run_row *row)
{
    for (size_t n = strlen(row->path); n > 0; n--) {
        if (row->path[n] != '.' && row->path[n] != '\0')
            continue;
        const weir_run_row *block = weir_run_row_of_bytes(row->path, n);
        if (block->kind == WEIR_RUN_BLOCK && block->has_member &&
            !*(const bool *)weir_run_member(config, block))
            return false;
    }
    return true;
}

/* Texts are made once, so that asking for them changes nothing. */
static void keep_value(weir_run_config *config, const weir_run_row *row, weir_run_value *value)
{
    const weir_run_state *state = weir_run_state_of(config, row->path);
    if (row->kind == WEIR_RUN_LIST) {
        const weir_run_texts *texts = weir_run_member(config, row);
        value->items = texts->items;
        value->n_items = texts->n_items;
    } else if (row->kind != WEIR_RUN_BLOCK) {
        const char **item = weir_arena_zeroed(&config->arena, 1, sizeof(*item));
        if (item == NULL) {
            config->out_of_memory = true;
            return;
        }
        *item = weir_run_text_of(config, row);
        value->items = item;
        value->n_items = *item != NULL;
    }
    value->source = state->node != NULL ? state->origin->path : NULL;
    value->line = state->node != NULL ? state->node->line : 0;
}

void weir_run_keep_values(weir_run_config *config)
{
    size_t n_rows;
    const weir_run_row *rows = weir_run_rows(&n_rows);
    for (size_t i = 0; i < n_rows && !config->out_of_memory; i++) {
        config->is_there[i] = is_there(config, &rows[i]);
        keep_value(config, &rows[i], &config->values[i]);
        if (rows[i].kind != WEIR_RUN_BLOCK && config->values[i].n_items == 0)
            config->is_there[i] = false;
    }
}

bool weir_run_config_value(const weir_run_config *config, const char *path, weir_run_value *out)
{
    size_t n_rows;
    const weir_run_row *rows = weir_run_rows(&n_rows), *row = weir_run_row_of(path);
    if (row == NULL || !config->is_there[row - rows])
        return false;
    *out = config->values[row - rows];
    return true;
}
