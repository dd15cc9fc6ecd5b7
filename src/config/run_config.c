/* SPDX-License-Identifier: Apache-2.0 */
/* run_config.c - a run configuration from its text to its settings, and the list of its problems.
 *
 * What the file says, what it leaves to others and what does not go together are three passes in
 * files of their own; this one calls them in order and keeps what they find.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "config/run_state.h"

/* ---- state -----------------------------------------------------------------------------------*/

static size_t index_of(const weir_run_row *row)
{
    size_t n_rows;
    return (size_t)(row - weir_run_rows(&n_rows));
}

weir_run_state *weir_run_state_of(weir_run_config *config, const char *path)
{
    return &config->states[index_of(weir_run_row_of(path))];
}

void *weir_run_member(weir_run_config *config, const weir_run_row *row)
{
    return (char *)&config->settings + row->offset;
}

/* ---- problems --------------------------------------------------------------------------------*/

const char *weir_run_line(weir_run_config *config, const char *format, ...)
{
    char line[WEIR_ERROR_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    weir_error_one_line(line);
    const char *kept = weir_arena_strdup(&config->arena, line);
    config->out_of_memory = config->out_of_memory || kept == NULL;
    return kept;
}

void weir_run_complain_at(weir_run_config *config, uint32_t line, uint32_t column, const char *path,
                          const char *text, const char *hint)
{
    if (config->out_of_memory || config->n_problems == WEIR_RUN_MAX_PROBLEMS)
        return;
    for (size_t i = 0; i < config->n_problems; i++) {
        const weir_run_problem *other = &config->problems[i];
        if (other->line == line && other->column == column && strcmp(other->text, text) == 0)
            return;
    }
    config->problems[config->n_problems++] = (weir_run_problem){ .file = config->file,
                                                                 .line = line,
                                                                 .column = column,
                                                                 .path = path,
                                                                 .text = text,
                                                                 .hint = hint };
}

void weir_run_complain(weir_run_config *config, const char *path, const char *text,
                       const char *hint)
{
    const weir_run_state *state = weir_run_state_of(config, path);
    if (state->node != NULL) {
        weir_run_complain_at(config, state->node->line, state->node->column, state->origin->path,
                             text, hint);
        return;
    }
    for (size_t n = strlen(path); n > 0; n--) {
        if (path[n] != '.')
            continue;
        const weir_yaml_node *block = config->states[index_of(weir_run_row_of_bytes(path, n))].node;
        if (block != NULL && block->key != NULL) {
            weir_run_complain_at(config, block->key_line, block->key_column, path, text, hint);
            return;
        }
    }
    weir_run_complain_at(config, 1, 1, path, text, hint);
}

size_t weir_run_config_problems(const weir_run_config *config)
{
    return config->n_problems;
}

const weir_run_problem *weir_run_config_problem(const weir_run_config *config, size_t index)
{
    return index < config->n_problems ? &config->problems[index] : NULL;
}

weir_status weir_run_config_settings(const weir_run_config *config, const weir_run_settings **out)
{
    if (config->n_problems == 0) {
        *out = &config->settings;
        return WEIR_OK;
    }
    const weir_run_problem *first = &config->problems[0];
    char more[48] = "";
    if (config->n_problems > 1)
        snprintf(more, sizeof(more), "; %zu more problems", config->n_problems - 1);
    return weir_fail(WEIR_ERR_INVALID, "%s:%u:%u: %s%s%s (%s)%s", first->file, first->line,
                     first->column, first->path, first->path[0] != '\0' ? ": " : "", first->text,
                     first->hint, more);
}

/* ---- opening ---------------------------------------------------------------------------------*/

static void take_document(weir_run_config *config, const weir_yaml_node *root)
{
    static void (*const passes[])(weir_run_config *) = { weir_run_set_up, weir_run_check_rules,
                                                         weir_run_check_kernel,
                                                         weir_run_keep_values };
    weir_run_take_values(config, root);
    for (size_t i = 0; i < sizeof(passes) / sizeof(passes[0]) && !config->out_of_memory; i++)
        passes[i](config);
}

static weir_status read_document(weir_run_config *config, const char *text, size_t n_bytes)
{
    const weir_yaml_node *root = NULL;
    weir_yaml_fault fault;
    weir_status status = weir_yaml_parse(text, n_bytes, &config->arena, &root, &fault);
    if (status != WEIR_OK)
        return status;
    if (fault.text == NULL)
        take_document(config, root);
    else
        weir_run_complain_at(config, fault.line, fault.column, "",
                             weir_run_line(config, "%s", fault.text), fault.hint);
    return config->out_of_memory ? WEIR_ERR_NO_MEMORY : WEIR_OK;
}

static weir_status parse_at(const char *text, size_t n_bytes, const char *what,
                            const char *trainer_host, weir_run_config **out)
{
    if (n_bytes > WEIR_RUN_CONFIG_MAX_BYTES)
        return weir_fail(WEIR_ERR_FORMAT, "%s: a run configuration has at most %u bytes", what,
                         WEIR_RUN_CONFIG_MAX_BYTES);
    weir_run_config *config = weir_alloc_zeroed(1, sizeof(*config));
    if (config == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_arena_init(&config->arena, 0);
    config->file = weir_run_line(config, "%s", what);
    if (trainer_host != NULL)
        config->trainer_host = weir_run_line(config, "%s", trainer_host);
    config->problems =
        weir_arena_zeroed(&config->arena, WEIR_RUN_MAX_PROBLEMS, sizeof(*config->problems));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (config->file != NULL && config->problems != NULL)
        status = read_document(config, text, n_bytes);
    if (status != WEIR_OK) {
        weir_run_config_close(config);
        return status;
    }
    *out = config;
    return WEIR_OK;
}

weir_status weir_run_config_parse(const char *text, size_t n_bytes, const char *what,
                                  weir_run_config **out)
{
    return parse_at(text, n_bytes, what, NULL, out);
}

weir_status weir_run_config_open_at(const char *path, const char *trainer_host,
                                    weir_run_config **out)
{
    FILE *file = fopen(path, "rbe");
    if (file == NULL)
        return weir_fail_errno("%s", path);
    weir_status status = WEIR_ERR_NO_MEMORY;
    char *text = weir_alloc(WEIR_RUN_CONFIG_MAX_BYTES + 1u);
    if (text != NULL) {
        size_t n_bytes = fread(text, 1, WEIR_RUN_CONFIG_MAX_BYTES + 1u, file);
        status = ferror(file) ? weir_fail_errno("%s", path)
                              : parse_at(text, n_bytes, path, trainer_host, out);
    }
    weir_free(text);
    fclose(file);
    return status;
}

weir_status weir_run_config_open(const char *path, weir_run_config **out)
{
    return weir_run_config_open_at(path, NULL, out);
}

void weir_run_config_close(weir_run_config *config)
{
    if (config == NULL)
        return;
    weir_arena_close(&config->arena);
    weir_free(config);
}
