/* SPDX-License-Identifier: Apache-2.0 */
/* transport_table.h - the transports of this tree, and what all of them share. */
#ifndef WEIR_TRANSPORT_TABLE_H
#define WEIR_TRANSPORT_TABLE_H

#include "weir/transport.h"

extern const weir_transport_ops weir_transport_ucx; /* only where WEIR_HAVE_UCX */
extern const weir_transport_ops weir_transport_cuda_ipc;
extern const weir_transport_ops weir_transport_nccl; /* only where WEIR_HAVE_NCCL */
extern const weir_transport_ops weir_transport_file;

/* weir_options_read() where NULL stands for all defaults. */
weir_status weir_transport_struct_read(const void *given, size_t own_bytes, const char *what,
                                       void *out);

/* Checks copies before a transfer begins: each from a region of `peer`, with a destination.
 * *out_bytes is their sum. That they lie in their regions is left to the transport, which alone
 * knows how long those are: it calls the second for each. */
weir_status weir_transport_copies_check(const weir_peer *peer, const weir_copy *copies,
                                        size_t n_copies, uint64_t *out_bytes);
weir_status weir_transport_bounds_check(const weir_copy *copy, size_t index, uint64_t region_bytes);

/* Checks a broadcast before it begins: of a rank that there is, each part with data. */
weir_status weir_transport_parts_check(const char *who, uint32_t root, uint32_t n_ranks,
                                       const weir_group_part *parts, size_t n_parts);

#endif
