/* SPDX-License-Identifier: Apache-2.0 */
/* transport_key.h - the bytes of addresses and keys: what a reader is told about a peer.
 *
 * Every one is an envelope (key_envelope.h) around the fields below. They come from other
 * processes: decoding checks every length and every value before it is used, and never reads past
 * n_bytes. What remains is forgery: whoever may publish is trusted to name memory of its own.
 *
 * Threads    plain values.
 * Ownership  a decoded struct borrows what it points to from the bytes it was made of.
 * Errors     ERR_CORRUPT: does not decode. ERR_UNSUPPORTED: of another transport or format version.
 */
#ifndef WEIR_TRANSPORT_KEY_H
#define WEIR_TRANSPORT_KEY_H

#include "transport/key_envelope.h"

#define WEIR_KEY_PATH 512

/* Where a process of transport ucx is. */
typedef struct weir_ucx_address {
    char ucx_version[WEIR_KEY_TEXT]; /* "1.13.1": remote keys of different ones do not agree */
    char host[WEIR_KEY_TEXT];        /* this boot of this host and its process namespace */
    uint32_t process;
    uint64_t greeting;    /* address in that process of a random word that a reader must find */
    uint64_t greeting_is; /* what it holds */
    const uint8_t *rkey;  /* of the greeting; UCX's own bytes, as those of the worker */
    size_t rkey_bytes;
    const uint8_t *worker;
    size_t worker_bytes;
    const uint8_t *stream; /* where readers connect that UCX does not: as the key of a group says */
    size_t stream_bytes;   /* 0: nowhere, and the address is of format version 1, else 2 */
} weir_ucx_address;
weir_status weir_ucx_address_encode(const weir_ucx_address *address, weir_key_buffer *out);
weir_status weir_ucx_address_decode(const void *data, size_t n_bytes, const char *who,
                                    weir_ucx_address *out);

/* One region of transport ucx. */
typedef struct weir_ucx_key {
    char ucx_version[WEIR_KEY_TEXT];
    uint64_t base; /* address in the owner's process */
    uint64_t n_bytes;
    const uint8_t *rkey; /* UCX's own bytes */
    size_t rkey_bytes;
} weir_ucx_key;
weir_status weir_ucx_key_encode(const weir_ucx_key *key, weir_key_buffer *out);
weir_status weir_ucx_key_decode(const void *data, size_t n_bytes, const char *who,
                                weir_ucx_key *out);

/* Where a process of transport cuda_ipc answers, and which GPU it allocates on. */
typedef struct weir_cuda_ipc_address {
    char host[WEIR_KEY_TEXT];   /* its name */
    char place[WEIR_KEY_TEXT];  /* this boot of it and its network namespace */
    char socket[WEIR_KEY_TEXT]; /* abstract, without the leading zero; fits a socket address */
    char gpu[WEIR_KEY_TEXT];    /* PCI bus id */
    uint32_t process;
    uint64_t owner[2]; /* a random number of its own */
} weir_cuda_ipc_address;
weir_status weir_cuda_ipc_address_encode(const weir_cuda_ipc_address *address,
                                         weir_key_buffer *out);
weir_status weir_cuda_ipc_address_decode(const void *data, size_t n_bytes, const char *who,
                                         weir_cuda_ipc_address *out);

/* One region of transport cuda_ipc; how to map it is asked of its owner. */
typedef struct weir_cuda_ipc_key {
    uint64_t owner[2];
    uint64_t region;
    uint64_t n_bytes;
} weir_cuda_ipc_key;
weir_status weir_cuda_ipc_key_encode(const weir_cuda_ipc_key *key, weir_key_buffer *out);
weir_status weir_cuda_ipc_key_decode(const void *data, size_t n_bytes, const char *who,
                                     weir_cuda_ipc_key *out);

/* Who writes into a shared directory. */
typedef struct weir_file_address {
    char name[WEIR_KEY_TEXT];
} weir_file_address;
weir_status weir_file_address_encode(const weir_file_address *address, weir_key_buffer *out);
weir_status weir_file_address_decode(const void *data, size_t n_bytes, const char *who,
                                     weir_file_address *out);

/* Bytes [region_offset, + n_bytes) of a region lie at file_offset of its file. */
typedef struct weir_file_segment {
    uint64_t region_offset, file_offset, n_bytes;
} weir_file_segment;

/* One sealed region of transport file. Decoded: segments are in order of region_offset, do not
 * overlap, and end within region_bytes and file_bytes; the path has exactly two plain parts. */
typedef struct weir_file_key {
    char path[WEIR_KEY_PATH]; /* "model/label": without suffix, within the shared directory */
    uint64_t nonce[2];        /* that the marker file repeats */
    uint64_t region_bytes, file_bytes;
    const weir_file_segment *segments; /* to encode */
    const uint8_t *segment_data;       /* decoded: read with weir_file_key_segment() */
    size_t n_segments;
} weir_file_key;
weir_status weir_file_key_encode(const weir_file_key *key, weir_key_buffer *out);
weir_status weir_file_key_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_file_key *out);
weir_file_segment weir_file_key_segment(const weir_file_key *key, size_t index);

#endif
