/* SPDX-License-Identifier: Apache-2.0 */
/* transport_host.c - this host and namespace, as the kernel names them. */
#include "transport/transport_host.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void read_text(const char *path, char *out, size_t out_bytes)
{
    ssize_t n = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        n = read(fd, out, out_bytes - 1);
        close(fd);
    }
    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

void weir_transport_host(const char *kind, char out[WEIR_KEY_TEXT])
{
    char boot[64], path[32], space[48] = "";
    read_text("/proc/sys/kernel/random/boot_id", boot, sizeof(boot));
    snprintf(path, sizeof(path), "/proc/self/ns/%s", kind);
    ssize_t n = readlink(path, space, sizeof(space) - 1);
    space[n > 0 ? n : 0] = '\0';
    snprintf(out, WEIR_KEY_TEXT, "%s %s", boot, space);
}
