/* SPDX-License-Identifier: Apache-2.0 */
/* file_map.c - mmap behind one open and one close. The descriptor is not kept: a checkpoint of
 * hundreds of shards would otherwise run into the limit of open files. */
#include "checkpoint/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static weir_status map_descriptor(int fd, const char *path, weir_file_map *out)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return weir_fail_errno("%s", path);
    if (!S_ISREG(info.st_mode))
        return weir_fail(WEIR_ERR_IO, "%s: not a regular file", path);
    weir_file_map map = { NULL, (size_t)info.st_size };
    if (map.n_bytes > 0) {
        map.bytes = mmap(NULL, map.n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map.bytes == MAP_FAILED)
            return weir_fail_errno("%s: cannot map %zu bytes", path, map.n_bytes);
    }
    *out = map;
    return WEIR_OK;
}

weir_status weir_file_map_open(const char *path, weir_file_map *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make us wait */
    if (fd < 0)
        return weir_fail_errno("%s", path);
    weir_status status = map_descriptor(fd, path, out);
    close(fd);
    return status;
}

void weir_file_map_close(weir_file_map *map)
{
    if (map->bytes != NULL)
        munmap(map->bytes, map->n_bytes);
    *map = (weir_file_map){ NULL, 0 };
}
