/* SPDX-License-Identifier: Apache-2.0 */
/* file_stamp.c - stat(), which follows links: a swapped link shows as another inode. */
#include "rpc/file_stamp.h"

#include <stddef.h>

static int64_t ns_of(struct timespec when)
{
    return (int64_t)when.tv_sec * 1000000000 + when.tv_nsec;
}

bool weir_file_stamp_take(const char *path, weir_file_stamp *out)
{
    struct stat about;
    *out = (weir_file_stamp){ .inode = 0 };
    if (path == NULL)
        return true;
    if (stat(path, &about) != 0)
        return false;
    *out = (weir_file_stamp){ .device = about.st_dev,
                              .inode = about.st_ino,
                              .n_bytes = (uint64_t)about.st_size,
                              .written_ns = ns_of(about.st_mtim),
                              .changed_ns = ns_of(about.st_ctim) };
    return true;
}
