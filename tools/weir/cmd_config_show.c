/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_config_show.c - `weir config show`: what each part of a run gets, and from where. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "config_fields.h"

const char weir_usage_config_show[] =
    "usage: weir config show FILE [--json]\n"
    "\n"
    "Prints a run configuration as each part of the run sees it, every field with the value that "
    "it\n"
    "writes itself, takes from another or has by default. The output is such a file again; behind\n"
    "each value stands where it comes from.\n"
    "\n"
    "  --json         one object: the same without the comments; family and conversion besides,\n"
    "                 of kernel format and a model that is on this machine\n";

/* ---- YAML ------------------------------------------------------------------------------------*/

static void print_text(const char *text)
{
    json_t *value = json_string(text);
    char *quoted = value != NULL ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    fputs(quoted != NULL ? quoted : "?", stdout);
    free(quoted);
    json_decref(value);
}

static void print_items(const weir_run_field *field, const weir_run_value *value)
{
    bool is_list = strcmp(field->type, "list") == 0;
    bool is_quoted = is_list || strcmp(field->type, "text") == 0;
    fputs(is_list ? "[" : "", stdout);
    for (size_t i = 0; i < value->n_items; i++) {
        fputs(i > 0 ? ", " : "", stdout);
        if (is_quoted)
            print_text(value->items[i]);
        else
            fputs(value->items[i], stdout);
    }
    fputs(is_list ? "]" : "", stdout);
}

static void print_source(const weir_run_field *field, const weir_run_value *value)
{
    bool is_default = field->default_value != NULL && value->n_items == 1 &&
                      strcmp(value->items[0], field->default_value) == 0;
    if (value->source == NULL)
        puts(is_default ? " # default" : " # worked out");
    else if (strcmp(value->source, field->path) == 0)
        printf(" # line %u\n", value->line);
    else
        printf(" # from %s, line %u\n", value->source, value->line);
}

static size_t depth_of(const char *path)
{
    size_t depth = 0;
    for (; (path = strchr(path, '.')) != NULL; path++)
        depth++;
    return depth;
}

/* The blocks around a field that are not around the one printed before it. */
static void print_heads(const char *path, const char *before)
{
    size_t n = 0, depth = 0;
    for (const char *dot; (dot = strchr(path + n, '.')) != NULL; depth++) {
        size_t n_head = (size_t)(dot - path);
        if (strncmp(path, before, n_head + 1) != 0)
            printf("%*s%.*s:\n", (int)depth * 2, "", (int)(n_head - n), path + n);
        n = n_head + 1;
    }
}

static void print_yaml(const weir_run_config *config, const weir_run_settings *settings)
{
    weir_run_field fields[WEIR_CLI_MAX_RUN_FIELDS];
    size_t n_fields = weir_cli_run_fields(fields);
    const char *before = "";
    weir_run_value value;
    for (size_t i = 0; i < n_fields; i++) {
        if (strcmp(fields[i].type, "block") == 0 ||
            !weir_run_config_value(config, fields[i].path, &value))
            continue;
        print_heads(fields[i].path, before);
        printf("%*s%s: ", (int)depth_of(fields[i].path) * 2, "", weir_cli_run_key(fields[i].path));
        print_items(&fields[i], &value);
        print_source(&fields[i], &value);
        before = fields[i].path;
    }
    if (settings->family != NULL)
        printf("# family %s, conversion %s\n", settings->family,
               settings->conversion != NULL ? settings->conversion : "none");
}

/* ---- JSON ------------------------------------------------------------------------------------*/

static json_t *value_json(const weir_run_field *field, const weir_run_value *value)
{
    const char *text = value->n_items > 0 ? value->items[0] : "";
    if (strcmp(field->type, "integer") == 0)
        return json_integer(strtoll(text, NULL, 10));
    if (strcmp(field->type, "boolean") == 0)
        return json_boolean(strcmp(text, "true") == 0);
    if (strcmp(field->type, "list") != 0)
        return json_string(text);
    json_t *items = json_array();
    for (size_t i = 0; i < value->n_items; i++)
        json_array_append_new(items, json_string(value->items[i]));
    return items;
}

static int print_json(const weir_run_config *config, const weir_run_settings *settings)
{
    weir_run_field fields[WEIR_CLI_MAX_RUN_FIELDS];
    size_t n_fields = weir_cli_run_fields(fields);
    json_t *whole = json_object();
    weir_run_value value;
    for (size_t i = 0; i < n_fields; i++)
        if (strcmp(fields[i].type, "block") != 0 &&
            weir_run_config_value(config, fields[i].path, &value))
            json_object_set_new(weir_cli_run_block(whole, fields[i].path, NULL),
                                weir_cli_run_key(fields[i].path), value_json(&fields[i], &value));
    return weir_cli_print_json(json_pack("{s:o, s:s?, s:s?}", "settings", whole, "family",
                                         settings->family, "conversion", settings->conversion));
}

int weir_cmd_config_show(int argc, char **argv)
{
    bool as_json;
    weir_run_config *config;
    const weir_run_settings *settings;
    if (!weir_cli_json_option(argc, argv, &as_json))
        return WEIR_EXIT_USAGE;
    if (argc - optind != 1)
        return weir_cli_usage_error(argv[0], "takes one file, got %d arguments", argc - optind);
    if (weir_run_config_open(argv[optind], &config) != WEIR_OK)
        return weir_cli_fail();
    int code = WEIR_EXIT_OK;
    if (weir_run_config_settings(config, &settings) != WEIR_OK)
        code = weir_cli_fail();
    else if (as_json)
        code = print_json(config, settings);
    else
        print_yaml(config, settings);
    weir_run_config_close(config);
    return code;
}
