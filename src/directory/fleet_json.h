/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_json.h - all that a directory knows of its models, as one JSON document for people. */
#ifndef WEIR_DIRECTORY_FLEET_JSON_H
#define WEIR_DIRECTORY_FLEET_JSON_H

#include "directory/directory_core.h"

/* Of one model, NULL: of all; with refits of version `number` alone, 0: the last ones. *out is in
 * the arena. */
weir_status weir_fleet_json(const weir_directory_core *core, const char *model, uint64_t number,
                            uint64_t now_ms, weir_arena *arena, char **out);

#endif
