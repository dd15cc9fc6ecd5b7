/* SPDX-License-Identifier: Apache-2.0 */
/* transport_key.h - the bytes of addresses and keys: what a reader is told about a peer.
 *
 * Every one is an envelope (magic, transport, kind, format version, length, checksum) around the
 * fields below, little-endian. They come from other processes: decoding checks every length and
 * every value before it is used, and never reads past n_bytes. The checksum is against damage, not
 * against forgery: whoever may publish is trusted to name memory of its own.
 *
 * Threads    plain values.
 * Ownership  a decoded struct borrows what it points to from the bytes it was made of.
 * Errors     ERR_CORRUPT: does not decode. ERR_UNSUPPORTED: of another transport or format version.
 */
#ifndef WEIR_TRANSPORT_KEY_H
#define WEIR_TRANSPORT_KEY_H

#include "weir/transport.h"

#define WEIR_KEY_TEXT 128 /* bytes of a short text, its end included */
#define WEIR_KEY_PATH 512
#define WEIR_KEY_BLOB 4096 /* bytes of an opaque piece at most */

/* Grows, and is kept for the next encoding: a second one of as many bytes allocates nothing. */
typedef struct weir_key_buffer {
    uint8_t *data;
    size_t n_bytes, capacity;
} weir_key_buffer;
void weir_key_buffer_close(weir_key_buffer *buffer);

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

/* A broadcast group of transport ucx: where its rank 0 listens, and the word that lets a rank in.
 * WEIR_GROUP_KEY_BYTES when encoded, whatever is in it. */
#define WEIR_UCX_NONCE 16
#define WEIR_UCX_ADDRESSES 15
typedef struct weir_ip_address {
    uint8_t family;    /* 4 or 6 */
    uint8_t bytes[16]; /* as on the wire; 4 of them for family 4 */
} weir_ip_address;
typedef struct weir_ucx_group_key {
    uint8_t nonce[WEIR_UCX_NONCE];
    uint64_t place; /* host and network namespace: ranks there reach it by the loopback address */
    uint16_t port;
    unsigned n_addresses; /* those that do not fit are left out */
    weir_ip_address addresses[WEIR_UCX_ADDRESSES];
} weir_ucx_group_key;
weir_status weir_ucx_group_key_encode(const weir_ucx_group_key *key, weir_key_buffer *out);
weir_status weir_ucx_group_key_decode(const void *data, size_t n_bytes, const char *who,
                                      weir_ucx_group_key *out);

/* What ranks of such a group tell each other. */
#define WEIR_UCX_MESSAGE_BYTES 1024 /* of one message at most */
#define WEIR_UCX_REASON 512

typedef enum weir_ucx_purpose {
    WEIR_UCX_JOIN, /* a rank to rank 0: for words, both ways */
    WEIR_UCX_FEED, /* a rank to the one after it: where its bytes of broadcasts are */
    WEIR_UCX_PURPOSES
} weir_ucx_purpose;

/* First on every connection; who is fed says it, too. */
typedef struct weir_ucx_hello {
    weir_ucx_purpose purpose;
    uint32_t rank, n_ranks, process;
    char host[WEIR_KEY_TEXT];
    weir_ucx_group_key where; /* the group's nonce, and where this rank listens */
} weir_ucx_hello;
weir_status weir_ucx_hello_encode(const weir_ucx_hello *hello, weir_key_buffer *out);
weir_status weir_ucx_hello_decode(const void *data, size_t n_bytes, const char *who,
                                  weir_ucx_hello *out);

/* Rank 0 to a rank once all are in: who it is, and where the rank's next one listens. */
typedef struct weir_ucx_start {
    uint32_t process;
    char host[WEIR_KEY_TEXT];
    weir_ucx_group_key after;
} weir_ucx_start;
weir_status weir_ucx_start_encode(const weir_ucx_start *start, weir_key_buffer *out);
weir_status weir_ucx_start_decode(const void *data, size_t n_bytes, const char *who,
                                  weir_ucx_start *out);

typedef enum weir_ucx_word_kind {
    WEIR_UCX_LINKED, /* a rank: it is connected to the one before and to the one after */
    WEIR_UCX_JOINED, /* rank 0: all are linked */
    WEIR_UCX_DONE,   /* a rank: so many broadcasts have ended here */
    WEIR_UCX_LEFT,   /* the sender goes, with all of its broadcasts done */
    WEIR_UCX_BROKEN, /* the group is over: status and reason */
    WEIR_UCX_WORDS
} weir_ucx_word_kind;
typedef struct weir_ucx_word {
    weir_ucx_word_kind kind;
    uint64_t n_done;
    weir_status status; /* of BROKEN: an error */
    char reason[WEIR_UCX_REASON];
} weir_ucx_word;
weir_status weir_ucx_word_encode(const weir_ucx_word *word, weir_key_buffer *out);
weir_status weir_ucx_word_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_word *out);

/* First of a broadcast. WEIR_UCX_HEAD_BYTES when encoded. */
#define WEIR_UCX_HEAD_BYTES 48
typedef struct weir_ucx_head {
    uint32_t root;
    uint64_t number; /* within the group, from 0 */
    uint64_t n_bytes;
    uint64_t parts; /* a digest of how long each is */
} weir_ucx_head;
weir_status weir_ucx_head_encode(const weir_ucx_head *head, weir_key_buffer *out);
weir_status weir_ucx_head_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_head *out);

/* Of broadcasts, between neighbours of the chain: addresses and keys go as they are. */
#define WEIR_UCX_FEED_BYTES (3 * WEIR_KEY_BLOB) /* of one message there at most */
typedef enum weir_ucx_step_kind {
    WEIR_UCX_WAY,   /* both: 1: bytes are read; 0: they are sent over this connection */
    WEIR_UCX_AT,    /* forth: the next part begins so far into the region whose key follows */
    WEIR_UCX_HERE,  /* forth: so many bytes of the broadcast may be read, or have been sent once
                       those that this is followed by are in */
    WEIR_UCX_TAKEN, /* back: so many broadcasts of the group have been read whole */
    WEIR_UCX_STEPS
} weir_ucx_step_kind;
typedef struct weir_ucx_step {
    weir_ucx_step_kind kind;
    uint64_t value;
} weir_ucx_step;
weir_status weir_ucx_step_encode(const weir_ucx_step *step, weir_key_buffer *out);
weir_status weir_ucx_step_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_ucx_step *out);

/* Which message the n_bytes that have come begin ('h', 's', 'w'; between neighbours 'a', 'b', 'k',
 * 't'), and how long it will be; 0 when that cannot be told yet. ERR_CORRUPT when they begin none.
 */
weir_status weir_ucx_message_kind(const void *data, size_t n_bytes, char *out_kind,
                                  size_t *out_message_bytes);

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
