/* SPDX-License-Identifier: Apache-2.0 */
/* file.h - the objects of transport file: a directory that every process can reach.
 *
 *   DIRECTORY/MODEL/LABEL.safetensors      the tensors of one sealed region
 *   DIRECTORY/MODEL/LABEL.manifest.json    what they are, for people and other tools
 *   DIRECTORY/MODEL/LABEL.ready            written last: without it the other two do not count
 *
 * Sealing is in file_seal.c, reading in file_read.c.
 */
#ifndef WEIR_TRANSPORT_FILE_H
#define WEIR_TRANSPORT_FILE_H

#include <stdio.h>

#include "transport/transport_key.h"
#include "weir/transport.h"

#define WEIR_FILE_DATA ".safetensors"
#define WEIR_FILE_MANIFEST ".manifest.json"
#define WEIR_FILE_MARKER ".ready"
#define WEIR_FILE_MARKER_BYTES 64
#define WEIR_FILE_PART 208 /* bytes of a model's or label's file name, without suffix */

typedef struct file_transport {
    weir_transport base;
    int directory_fd;
    char *directory;
    weir_key_buffer address;
} file_transport;

typedef struct file_region {
    weir_region base;
    void *data;
    uint64_t n_bytes;
    bool allocated; /* else the caller's */
    bool sealed;
    char model[WEIR_FILE_PART], label[WEIR_FILE_PART]; /* file names of the last seal */
    weir_key_buffer key;
} file_region;

/* What the marker of a seal says: written at the end of a seal, compared at every import. */
static inline void weir_file_marker(const uint64_t nonce[2], char out[WEIR_FILE_MARKER_BYTES])
{
    snprintf(out, WEIR_FILE_MARKER_BYTES, "weir-file 1 %016llx%016llx\n",
             (unsigned long long)nonce[0], (unsigned long long)nonce[1]);
}

/* file_seal.c */
weir_status weir_file_seal(weir_region *region, const weir_seal *seal);

/* file_read.c */
weir_status weir_file_connect(weir_transport *transport, const void *address, size_t n_bytes,
                              const char *who, unsigned timeout_ms, weir_peer **out);
void weir_file_disconnect(weir_peer *peer);
weir_status weir_file_import(weir_peer *peer, const void *key, size_t n_bytes,
                             weir_remote_region **out);
void weir_file_forget(weir_remote_region *remote);
weir_status weir_file_post(weir_peer *peer, const weir_copy *copies, size_t n_copies,
                           weir_transfer **out);
weir_status weir_file_test(weir_transfer *transfer, uint64_t *out_done);
void weir_file_finish(weir_transfer *transfer);

#endif
