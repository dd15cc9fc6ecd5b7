/* SPDX-License-Identifier: Apache-2.0 */
/* file_stamp.h - which content a file had, as far as the file system says: to read again what was
 * replaced, be it written anew, renamed over, or behind a link that points elsewhere by now. */
#ifndef WEIR_RPC_FILE_STAMP_H
#define WEIR_RPC_FILE_STAMP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

typedef struct weir_file_stamp {
    uint64_t device, inode, n_bytes;
    int64_t written_ns, changed_ns; /* wall clock */
} weir_file_stamp;

/* path NULL: a zeroed one. False when there is no such file at the moment. */
bool weir_file_stamp_take(const char *path, weir_file_stamp *out);

#endif
