/* SPDX-License-Identifier: Apache-2.0 */
/* file_map.h - a whole regular file, mapped read-only. */
#ifndef WEIR_CHECKPOINT_FILE_MAP_H
#define WEIR_CHECKPOINT_FILE_MAP_H

#include <stddef.h>

#include "weir/status.h"

/* Zeroed means not open. An empty file has n_bytes 0 and no mapping. */
typedef struct weir_file_map {
    void *bytes;
    size_t n_bytes;
} weir_file_map;

/* ERR_NOT_FOUND, or ERR_IO when the file cannot be read or is no regular file. Reading pages that
 * another process cuts off the file afterwards raises SIGBUS, as with every mapping. */
weir_status weir_file_map_open(const char *path, weir_file_map *out);
void weir_file_map_close(weir_file_map *map); /* accepts a zeroed map */

#endif
