/* SPDX-License-Identifier: Apache-2.0 */
/* key_envelope.h - the envelope around every address, key and message of the transports, and the
 * fields within it.
 *
 *    0  "WEIR"
 *    4  whose: 'u' ucx, 'c' cuda_ipc, 'f' file
 *    5  what: 'a' address, 'k' key, 'g' key of a group; messages of a group: 'h' hello, 's' start,
 *       'w' word, 'b' head, 't' step
 *    6  u16 format version
 *    8  u32 bytes in all
 *   12  the fields: u32, u64; texts and blobs as a u32 length and that many bytes
 *   -8  u64 checksum of everything before it
 *
 * All little-endian. The checksum is against damage, not against forgery.
 *
 * Threads    plain values.
 * Ownership  a reader borrows the bytes it reads, and gives pointers into them.
 * Errors     a writer or reader that has failed does nothing more, and says so at its end.
 */
#ifndef WEIR_TRANSPORT_KEY_ENVELOPE_H
#define WEIR_TRANSPORT_KEY_ENVELOPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/status.h"

#define WEIR_KEY_TEXT 128  /* bytes of a short text, its end included */
#define WEIR_KEY_BLOB 4096 /* bytes of an opaque piece at most */
#define WEIR_KEY_MAGIC "WEIR"
#define WEIR_KEY_HEAD_BYTES 12u
#define WEIR_KEY_CHECK_BYTES 8u

/* Grows, and is kept for the next encoding: a second one of as many bytes allocates nothing. */
typedef struct weir_key_buffer {
    uint8_t *data;
    size_t n_bytes, capacity;
} weir_key_buffer;
void weir_key_buffer_close(weir_key_buffer *buffer);

typedef struct weir_key_writer {
    weir_key_buffer *buffer;
    bool failed; /* out of memory: recorded, and what follows does nothing */
} weir_key_writer;
weir_key_writer weir_key_begin(weir_key_buffer *buffer, char transport, char kind);
/* Of what has another format version than 1. */
void weir_key_set_version(weir_key_writer *out, unsigned version);
void weir_key_put(weir_key_writer *out, const void *data, size_t n_bytes);
void weir_key_put_number(weir_key_writer *out, uint64_t value, unsigned n_bytes);
void weir_key_put_blob(weir_key_writer *out, const void *data, size_t n_bytes);
weir_status weir_key_end(weir_key_writer *out);

typedef struct weir_key_reader {
    const uint8_t *at;
    size_t left;
    bool failed;
    unsigned version;
} weir_key_reader;
/* Checks all of the envelope: exactly n_bytes of that transport and kind. */
weir_status weir_key_open(const void *data, size_t n_bytes, const char *who, char transport,
                          char kind, weir_key_reader *out);
/* NULL when fewer than n_bytes are left. */
const uint8_t *weir_key_take(weir_key_reader *in, uint64_t n_bytes);
uint64_t weir_key_take_number(weir_key_reader *in, unsigned n_bytes);
const uint8_t *weir_key_take_blob(weir_key_reader *in, size_t *out_n_bytes);
/* Printable ASCII alone: such a text goes into errors and file names. */
void weir_key_take_text(weir_key_reader *in, char *out, size_t out_bytes);
/* ERR_CORRUPT unless every field was there, and nothing else. */
weir_status weir_key_check_end(const weir_key_reader *in, const char *who, const char *what);
uint64_t weir_key_load_number(const uint8_t *at, unsigned n_bytes);

#endif
