/* SPDX-License-Identifier: Apache-2.0 */
/* config_fields.h - the run configuration's fields as `weir config show` and `schema` walk them. */
#ifndef WEIR_TOOLS_CONFIG_FIELDS_H
#define WEIR_TOOLS_CONFIG_FIELDS_H

#include <jansson.h>

#include "weir/run_config.h"

#define WEIR_CLI_MAX_RUN_FIELDS 128

/* Returns how many there are. */
size_t weir_cli_run_fields(weir_run_field fields[WEIR_CLI_MAX_RUN_FIELDS]);
/* The last word of a path. */
const char *weir_cli_run_key(const char *path);
/* The object that holds field `path`: from `whole` down, for each block by its key, and where
 * `inside` is not NULL by that key of the block's object. What is missing on the way is made. */
json_t *weir_cli_run_block(json_t *whole, const char *path, const char *inside);

#endif
