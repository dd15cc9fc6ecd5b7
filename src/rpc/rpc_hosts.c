/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_hosts.c - a table of chains; a host is in it as long as it has a connection. */
#include "rpc/rpc_hosts.h"

#include <netinet/in.h>
#include <stdint.h>
#include <string.h>

static void take_address(const struct sockaddr_storage *from, unsigned char out[16])
{
    memset(out, 0, 16);
    if (from->ss_family == AF_INET) {
        out[10] = out[11] = 0xff;
        memcpy(out + 12, &((const struct sockaddr_in *)from)->sin_addr, 4);
    } else if (from->ss_family == AF_INET6) {
        memcpy(out, &((const struct sockaddr_in6 *)from)->sin6_addr, 16);
    }
}

static bool is_loopback(const unsigned char address[16])
{
    static const unsigned char v4[12] = { [10] = 0xff, [11] = 0xff };
    static const unsigned char v6[16] = { [15] = 1 };
    return (memcmp(address, v4, sizeof(v4)) == 0 && address[12] == 127) ||
           memcmp(address, v6, sizeof(v6)) == 0;
}

static weir_rpc_host **bucket_of(weir_rpc_hosts *hosts, const unsigned char address[16])
{
    uint32_t hash = 2166136261u;
    for (int i = 0; i < 16; i++)
        hash = (hash ^ address[i]) * 16777619u;
    return &hosts->buckets[hash % WEIR_RPC_HOST_BUCKETS];
}

weir_rpc_host *weir_rpc_hosts_enter(weir_rpc_hosts *hosts, weir_rpc_heap *heap,
                                    const struct sockaddr_storage *address,
                                    unsigned max_connections)
{
    unsigned char key[16];
    take_address(address, key);
    weir_rpc_host **bucket = bucket_of(hosts, key);
    weir_rpc_host *host = *bucket;
    while (host != NULL && memcmp(host->address, key, sizeof(key)) != 0)
        host = host->next;
    if (host == NULL) {
        host = weir_rpc_heap_alloc(heap, sizeof(*host));
        if (host == NULL)
            return NULL;
        *host = (weir_rpc_host){ .next = *bucket, .is_loopback = is_loopback(key) };
        memcpy(host->address, key, sizeof(key));
        *bucket = host;
    }
    if (host->n_connections >= max_connections && !host->is_loopback)
        return NULL;
    host->n_connections++;
    return host;
}

void weir_rpc_hosts_leave(weir_rpc_hosts *hosts, weir_rpc_heap *heap, weir_rpc_host *host)
{
    if (--host->n_connections != 0)
        return;
    weir_rpc_host **place = bucket_of(hosts, host->address);
    while (*place != host)
        place = &(*place)->next;
    *place = host->next;
    weir_rpc_heap_free(heap, host);
}
