/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream_socket.c - where readers over TCP reach an owner, and how either side's kernel notices
 * that the other's host has vanished. A process that ends is noticed without any of this: its
 * kernel closes its connections.
 */
#include <ifaddrs.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/env.h"
#include "transport/ucx_group.h"
#include "transport/ucx_stream.h"

/* Eight seconds of silence, and more lost probes than a bad line loses in a row: connections are
 * idle from version to version. */
void weir_stream_keep_alive(int fd)
{
    const int idle_s = 3, interval_s = 1, probes = 5;
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

/* "eth1,mlx5_0:1": what follows a colon is a port of an RDMA device. */
static bool is_listed(const char *devices, const char *name)
{
    while (*devices != '\0') {
        size_t n = strcspn(devices, ",");
        if (n == strlen(name) && strncmp(devices, name, n) == 0)
            return true;
        devices += n + (devices[n] == ',');
    }
    return false;
}

static bool is_at(const struct ifaddrs *entry, const weir_ip_address *address)
{
    if (entry->ifa_addr == NULL)
        return false;
    if (address->family == 4 && entry->ifa_addr->sa_family == AF_INET) {
        const struct sockaddr_in *at = (const void *)entry->ifa_addr;
        return memcmp(&at->sin_addr, address->bytes, sizeof(at->sin_addr)) == 0;
    }
    if (address->family == 6 && entry->ifa_addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *at = (const void *)entry->ifa_addr;
        return memcmp(&at->sin6_addr, address->bytes, sizeof(at->sin6_addr)) == 0;
    }
    return false;
}

static bool is_wanted(const struct ifaddrs *all, const char *devices,
                      const weir_ip_address *address)
{
    for (const struct ifaddrs *entry = all; entry != NULL; entry = entry->ifa_next)
        if (is_at(entry, address) && is_listed(devices, entry->ifa_name))
            return true;
    return false;
}

/* The list that UCX goes by, too. One that names none of these interfaces, but RDMA devices, says
 * nothing about them. */
void weir_stream_own_addresses(weir_ucx_group_key *where)
{
    weir_ucx_group_key wanted = *where;
    const char *devices = weir_env_foreign("UCX_NET_DEVICES");
    struct ifaddrs *all;
    weir_ucx_own_addresses(where);
    if (devices == NULL || getifaddrs(&all) != 0)
        return;
    wanted.n_addresses = 0;
    for (unsigned i = 0; i < where->n_addresses; i++)
        if (is_wanted(all, devices, &where->addresses[i]))
            wanted.addresses[wanted.n_addresses++] = where->addresses[i];
    freeifaddrs(all);
    if (wanted.n_addresses > 0)
        *where = wanted;
}
