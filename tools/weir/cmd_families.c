/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_families.c - `weir families`: the model architectures that Weir can map onto an engine. */
#include <stdio.h>

#include "cli.h"

#define MAX_FAMILIES 64

const char weir_usage_families[] = "usage: weir families [--json]\n"
                                   "\n"
                                   "Lists the model families: engine layouts (the first is the "
                                   "default; besides them every family\n"
                                   "has \"checkpoint\", its tensors under Hugging Face's names), "
                                   "the model_type values of config.json\n"
                                   "that select each, and the presets that `weir synth` knows.\n"
                                   "\n"
                                   "  --json         one object: {\"families\": [...]}\n";

static json_t *list_json(const char *const *words)
{
    json_t *list = json_array();
    for (; words != NULL && *words != NULL; words++)
        json_array_append_new(list, json_string(*words));
    return list;
}

static void print_list(const char *label, const char *const *words)
{
    if (words == NULL || *words == NULL)
        return;
    printf("  %-12s %s", label, *words);
    while (*++words != NULL)
        printf(", %s", *words);
    putchar('\n');
}

int weir_cmd_families(int argc, char **argv)
{
    bool as_json;
    if (!weir_cli_json_option(argc, argv, &as_json))
        return WEIR_EXIT_USAGE;
    if (optind < argc)
        return weir_cli_usage_error(argv[0], "takes no argument, got '%s'", argv[optind]);

    weir_family_info families[MAX_FAMILIES];
    size_t n_families = weir_families(families, MAX_FAMILIES);
    json_t *rows = json_array();
    for (size_t i = 0; i < n_families && i < MAX_FAMILIES; i++) {
        const weir_family_info *family = &families[i];
        json_array_append_new(
            rows, json_pack("{s:s, s:s, s:o, s:s, s:o, s:o}", "name", family->name, "summary",
                            family->summary, "layouts", list_json(family->layouts), "wire_layout",
                            WEIR_LAYOUT_CHECKPOINT, "model_types", list_json(family->model_types),
                            "presets", list_json(family->presets)));
        if (as_json)
            continue;
        printf("%s\n  %s\n", family->name, family->summary);
        print_list("layouts", family->layouts);
        printf("  %-12s %s\n", "on the wire", WEIR_LAYOUT_CHECKPOINT);
        print_list("model types", family->model_types);
        print_list("presets", family->presets);
    }
    if (as_json)
        return weir_cli_print_json(json_pack("{s:o}", "families", rows));
    json_decref(rows);
    return WEIR_EXIT_OK;
}
