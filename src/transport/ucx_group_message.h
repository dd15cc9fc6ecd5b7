/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_group_message.h - the key of a broadcast group of transport ucx, and the messages of its
 * ranks: envelopes (key_envelope.h) around the fields below.
 *
 * They come from whoever connects: decoding checks every length and every value before it is used,
 * and never reads past n_bytes. Whether a message may be said then is for the group to judge.
 *
 * Threads    plain values.
 * Ownership  a decoded struct has all of its own.
 * Errors     ERR_CORRUPT: does not decode. ERR_UNSUPPORTED: of another transport or format version.
 */
#ifndef WEIR_TRANSPORT_UCX_GROUP_MESSAGE_H
#define WEIR_TRANSPORT_UCX_GROUP_MESSAGE_H

#include "transport/key_envelope.h"

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

#endif
