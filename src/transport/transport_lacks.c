/* SPDX-License-Identifier: Apache-2.0 */
/* transport_lacks.c - what a transport answers to calls that it has no means for. */
#include "transport/transport_lacks.h"

#include "base/error.h"

static weir_status lacks(const weir_transport *transport, const char *what)
{
    return weir_fail(WEIR_ERR_UNSUPPORTED, "transport %s cannot %s",
                     transport != NULL ? transport->ops->name : "(none)", what);
}

weir_status weir_transport_lacks_allocate(weir_transport *transport, uint64_t n_bytes,
                                          weir_region **out)
{
    (void)n_bytes, (void)out;
    return lacks(transport, "expose memory to readers");
}

weir_status weir_transport_lacks_expose(weir_transport *transport, void *data, uint64_t n_bytes,
                                        weir_region **out)
{
    (void)data, (void)n_bytes, (void)out;
    return lacks(transport, "expose memory to readers");
}

void weir_transport_lacks_release(weir_region *region)
{
    (void)region;
}

void *weir_transport_lacks_region_data(weir_region *region)
{
    (void)region;
    return NULL;
}

weir_status weir_transport_lacks_seal(weir_region *region, const weir_seal *seal)
{
    (void)seal;
    return lacks(region->transport, "expose memory to readers");
}

weir_status weir_transport_lacks_region_key(weir_region *region, const void **out_key,
                                            size_t *out_n_bytes)
{
    (void)out_key, (void)out_n_bytes;
    return lacks(region->transport, "expose memory to readers");
}

weir_status weir_transport_lacks_address(weir_transport *transport, const void **out,
                                         size_t *out_n_bytes)
{
    (void)out, (void)out_n_bytes;
    return lacks(transport, "be connected to");
}

weir_status weir_transport_lacks_connect(weir_transport *transport, const void *address,
                                         size_t n_bytes, const char *who, unsigned timeout_ms,
                                         weir_peer **out)
{
    (void)address, (void)n_bytes, (void)who, (void)timeout_ms, (void)out;
    return lacks(transport, "read from a peer");
}

void weir_transport_lacks_disconnect(weir_peer *peer)
{
    (void)peer;
}

weir_status weir_transport_lacks_import(weir_peer *peer, const void *key, size_t n_bytes,
                                        weir_remote_region **out)
{
    (void)key, (void)n_bytes, (void)out;
    return lacks(peer->transport, "read from a peer");
}

void weir_transport_lacks_forget(weir_remote_region *remote)
{
    (void)remote;
}

weir_status weir_transport_lacks_post(weir_peer *peer, const weir_copy *copies, size_t n_copies,
                                      weir_transfer **out)
{
    (void)copies, (void)n_copies, (void)out;
    return lacks(peer->transport, "read from a peer");
}

weir_status weir_transport_lacks_test(weir_transfer *transfer, uint64_t *out_done)
{
    (void)out_done;
    return lacks(transfer->peer->transport, "read from a peer");
}

void weir_transport_lacks_finish(weir_transfer *transfer)
{
    (void)transfer;
}

weir_status weir_transport_lacks_map(weir_remote_region *remote, void **out, uint64_t *out_n_bytes)
{
    (void)out, (void)out_n_bytes;
    return lacks(remote->peer->transport, "map another process's memory");
}

weir_status weir_transport_lacks_group_key(weir_transport *transport, void *out_key)
{
    (void)out_key;
    return lacks(transport, "broadcast");
}

weir_status weir_transport_lacks_group_open(weir_transport *transport,
                                            const weir_group_options *options, weir_group **out)
{
    (void)options, (void)out;
    return lacks(transport, "broadcast");
}

weir_status weir_transport_lacks_group_test(weir_group *group)
{
    return lacks(group->transport, "broadcast");
}

weir_status weir_transport_lacks_group_broadcast(weir_group *group, uint32_t root,
                                                 const weir_group_part *parts, size_t n_parts,
                                                 void *stream)
{
    (void)root, (void)parts, (void)n_parts, (void)stream;
    return lacks(group->transport, "broadcast");
}

void weir_transport_lacks_group_close(weir_group *group, bool abort)
{
    (void)group, (void)abort;
}

weir_status weir_transport_lacks_group_progress(weir_group *group, uint64_t *out_n_done)
{
    (void)out_n_done;
    return lacks(group->transport, "tell how far a broadcast is: its stream does");
}

void weir_transport_lacks_group_leave(weir_group *group, bool abort)
{
    (void)group, (void)abort;
}
