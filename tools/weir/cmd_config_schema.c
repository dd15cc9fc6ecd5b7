/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_config_schema.c - `weir config schema`: the run configuration as a JSON Schema, for editors
 * and other programs. docs/run-config.schema.json is its output. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "config_fields.h"

const char weir_usage_config_schema[] =
    "usage: weir config schema\n"
    "\n"
    "Prints the JSON Schema (draft 2020-12) of run configurations: every field with its type, "
    "values,\n"
    "default and meaning; x-weir-from names the field that gives the value where none is written.\n"
    "What fields must have in common is not in it: `weir config check` knows.\n";

static json_t *choices_json(const char *choices)
{
    json_t *words = json_array();
    for (const char *word = choices;; word++) {
        size_t n = strcspn(word, "|");
        json_array_append_new(words, json_stringn(word, n));
        word += n;
        if (*word == '\0')
            return words;
    }
}

static json_t *block_schema(const weir_run_field *field)
{
    return json_pack("{s:s, s:s, s:{}, s:b}", "type", "object", "description", field->help,
                     "properties", "additionalProperties", false);
}

static json_t *field_schema(const weir_run_field *field)
{
    const char *text = field->default_value;
    if (strcmp(field->type, "block") == 0)
        return block_schema(field);
    if (strcmp(field->type, "integer") == 0)
        return json_pack("{s:s, s:s, s:I, s:I, s:I}", "type", "integer", "description", field->help,
                         "minimum", (json_int_t)field->least, "maximum", (json_int_t)field->most,
                         "default", (json_int_t)strtoll(text, NULL, 10));
    if (strcmp(field->type, "boolean") == 0)
        return json_pack("{s:s, s:s, s:b}", "type", "boolean", "description", field->help,
                         "default", strcmp(text, "true") == 0);
    if (strcmp(field->type, "choice") == 0)
        return json_pack("{s:o, s:s, s:s}", "enum", choices_json(field->choices), "description",
                         field->help, "default", text);
    if (strcmp(field->type, "list") == 0)
        return json_pack("{s:s, s:{s:s}, s:i, s:b, s:s, s:[s]}", "type", "array", "items", "type",
                         "string", "minItems", 1, "uniqueItems", true, "description", field->help,
                         "default", text);
    return json_pack("{s:s, s:i, s:s, s:s*}", "type", "string", "minLength", 1, "description",
                     field->help, "default", text);
}

int weir_cmd_config_schema(int argc, char **argv)
{
    static const struct option none[] = { WEIR_CLI_OPTIONS_END };
    if (weir_cli_option(argc, argv, "", none) != -1)
        return WEIR_EXIT_USAGE;
    if (optind < argc)
        return weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);
    weir_run_field fields[WEIR_CLI_MAX_RUN_FIELDS];
    size_t n_fields = weir_cli_run_fields(fields);
    json_t *schema =
        json_pack("{s:s, s:s, s:s, s:{}, s:b}", "$schema",
                  "https://json-schema.org/draft/2020-12/schema", "title", "Weir run configuration",
                  "type", "object", "properties", "additionalProperties", false);
    for (size_t i = 0; i < n_fields; i++) {
        json_t *own = field_schema(&fields[i]);
        if (fields[i].from != NULL)
            json_object_set_new(own, "x-weir-from", json_string(fields[i].from));
        json_object_set_new(weir_cli_run_block(schema, fields[i].path, "properties"),
                            weir_cli_run_key(fields[i].path), own);
    }
    return weir_cli_print_json(schema);
}
