/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_resolve.c - `weir resolve`: which conversion an engine's config.json asks for. */
#include <stdio.h>

#include "cli.h"

const char weir_usage_resolve[] =
    "usage: weir resolve CONFIG_JSON [--json]\n"
    "\n"
    "Reads config.json (a file, or the directory that holds it) and prints the conversion that "
    "its\n"
    "quantization_config selects, with the compile target and metadata of the tensors that it\n"
    "makes. Without a quantization_config that is bf16_cast.\n"
    "\n"
    "  --json         one object: conversion, compile_target, compile_metadata, family (or null)\n";

static int print_choice(const weir_config *config, const weir_conversion *conversion, bool as_json)
{
    const char *family = NULL;
    if (weir_family_of_config(config, &family) != WEIR_OK)
        family = NULL;
    if (as_json)
        return weir_cli_print_json(
            json_pack("{s:s, s:s, s:o, s:s?}", "conversion", conversion->name, "compile_target",
                      conversion->compile_target, "compile_metadata",
                      weir_cli_json_of(conversion->compile_metadata), "family", family));
    printf("conversion  %s\ntarget      %s\nmetadata    %s\nfamily      %s\n", conversion->name,
           conversion->compile_target, conversion->compile_metadata,
           family != NULL ? family : "none that Weir knows");
    return WEIR_EXIT_OK;
}

int weir_cmd_resolve(int argc, char **argv)
{
    bool as_json;
    if (!weir_cli_json_option(argc, argv, &as_json))
        return WEIR_EXIT_USAGE;
    if (argc - optind != 1)
        return weir_cli_usage_error(argv[0], "takes one config.json, got %d arguments",
                                    argc - optind);

    weir_config *config = NULL;
    if (weir_config_open(argv[optind], &config) != WEIR_OK)
        return weir_cli_fail();
    const weir_conversion *conversion;
    int code = weir_conversion_select(config, &conversion) == WEIR_OK
                   ? print_choice(config, conversion, as_json)
                   : weir_cli_fail();
    weir_config_close(config);
    return code;
}
