/* SPDX-License-Identifier: Apache-2.0 */
/* transport_lacks.h - stand-ins for cells of the table that a transport does not have: each returns
 * ERR_UNSUPPORTED with the transport's name, so that callers never test for NULL. */
#ifndef WEIR_TRANSPORT_LACKS_H
#define WEIR_TRANSPORT_LACKS_H

#include "weir/transport.h"

/* For initialisers of weir_transport_ops. */
#define WEIR_TRANSPORT_LACKS_MAP .map = weir_transport_lacks_map
#define WEIR_TRANSPORT_LACKS_GROUPS                                                             \
    .group_key = weir_transport_lacks_group_key, .group_open = weir_transport_lacks_group_open, \
    .group_test = weir_transport_lacks_group_test,                                              \
    .group_broadcast = weir_transport_lacks_group_broadcast,                                    \
    .group_close = weir_transport_lacks_group_close,                                            \
    .group_progress = weir_transport_lacks_group_progress,                                      \
    .group_leave = weir_transport_lacks_group_leave
#define WEIR_TRANSPORT_LACKS_READ                                                             \
    .allocate = weir_transport_lacks_allocate, .expose = weir_transport_lacks_expose,         \
    .release = weir_transport_lacks_release, .region_data = weir_transport_lacks_region_data, \
    .seal = weir_transport_lacks_seal, .region_key = weir_transport_lacks_region_key,         \
    .address = weir_transport_lacks_address, .connect = weir_transport_lacks_connect,         \
    .disconnect = weir_transport_lacks_disconnect, .import = weir_transport_lacks_import,     \
    .forget = weir_transport_lacks_forget, .post = weir_transport_lacks_post,                 \
    .test = weir_transport_lacks_test, .finish = weir_transport_lacks_finish

weir_status weir_transport_lacks_allocate(weir_transport *transport, uint64_t n_bytes,
                                          weir_region **out);
weir_status weir_transport_lacks_expose(weir_transport *transport, void *data, uint64_t n_bytes,
                                        weir_region **out);
void weir_transport_lacks_release(weir_region *region);
void *weir_transport_lacks_region_data(weir_region *region);
weir_status weir_transport_lacks_seal(weir_region *region, const weir_seal *seal);
weir_status weir_transport_lacks_region_key(weir_region *region, const void **out_key,
                                            size_t *out_n_bytes);
weir_status weir_transport_lacks_address(weir_transport *transport, const void **out,
                                         size_t *out_n_bytes);
weir_status weir_transport_lacks_connect(weir_transport *transport, const void *address,
                                         size_t n_bytes, const char *who, unsigned timeout_ms,
                                         weir_peer **out);
void weir_transport_lacks_disconnect(weir_peer *peer);
weir_status weir_transport_lacks_import(weir_peer *peer, const void *key, size_t n_bytes,
                                        weir_remote_region **out);
void weir_transport_lacks_forget(weir_remote_region *remote);
weir_status weir_transport_lacks_post(weir_peer *peer, const weir_copy *copies, size_t n_copies,
                                      weir_transfer **out);
weir_status weir_transport_lacks_test(weir_transfer *transfer, uint64_t *out_done);
void weir_transport_lacks_finish(weir_transfer *transfer);
weir_status weir_transport_lacks_map(weir_remote_region *remote, void **out, uint64_t *out_n_bytes);
weir_status weir_transport_lacks_group_key(weir_transport *transport, void *out_key);
weir_status weir_transport_lacks_group_open(weir_transport *transport,
                                            const weir_group_options *options, weir_group **out);
weir_status weir_transport_lacks_group_test(weir_group *group);
weir_status weir_transport_lacks_group_broadcast(weir_group *group, uint32_t root,
                                                 const weir_group_part *parts, size_t n_parts,
                                                 void *stream);
void weir_transport_lacks_group_close(weir_group *group, bool abort);
weir_status weir_transport_lacks_group_progress(weir_group *group, uint64_t *out_n_done);
/* Of transports with no groups, and of those in which no group holds up another: does nothing. */
void weir_transport_lacks_group_leave(weir_group *group, bool abort);

#endif
