/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_transport_key.c - addresses and keys from other processes, with a checksum that fits. */
#include <stdlib.h>
#include <string.h>

#include "transport/transport_key.h"

#define CHECK_BYTES 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

/* Length and checksum would stop nearly every input at the door: they are set right here. */
static void set_right(uint8_t *copy, size_t n_bytes)
{
    if (n_bytes < 12 + CHECK_BYTES)
        return;
    weir_digest digest = { 0, 0 };
    memcpy(copy, "WEIR", 4);
    for (unsigned i = 0; i < 4; i++)
        copy[8 + i] = (uint8_t)(n_bytes >> (8 * i));
    copy[6] = 1, copy[7] = 0;
    weir_digest_add(&digest, copy, 1, n_bytes - CHECK_BYTES);
    for (unsigned i = 0; i < CHECK_BYTES; i++)
        copy[n_bytes - CHECK_BYTES + i] = (uint8_t)((digest.product ^ digest.sum) >> (8 * i));
}

static void decode_of_groups(const uint8_t *data, size_t n_bytes)
{
    weir_ucx_group_key key;
    weir_ucx_hello hello;
    weir_ucx_start start;
    weir_ucx_word word;
    weir_ucx_head head;
    weir_ucx_step step;
    char kind;
    size_t message_bytes;
    if (weir_ucx_group_key_decode(data, n_bytes, "fuzz", &key) == WEIR_OK &&
        key.n_addresses > WEIR_UCX_ADDRESSES)
        abort();
    weir_ucx_hello_decode(data, n_bytes, "fuzz", &hello);
    weir_ucx_start_decode(data, n_bytes, "fuzz", &start);
    weir_ucx_head_decode(data, n_bytes, "fuzz", &head);
    if (weir_ucx_step_decode(data, n_bytes, "fuzz", &step) == WEIR_OK &&
        step.kind >= WEIR_UCX_STEPS)
        abort();
    if (weir_ucx_word_decode(data, n_bytes, "fuzz", &word) == WEIR_OK &&
        (word.kind == WEIR_UCX_BROKEN) != (word.status < 0))
        abort();
    if (weir_ucx_message_kind(data, n_bytes, &kind, &message_bytes) == WEIR_OK &&
        message_bytes > WEIR_UCX_FEED_BYTES)
        abort();
}

static void decode(const uint8_t *data, size_t n_bytes)
{
    weir_ucx_address ucx_address;
    weir_ucx_key ucx_key;
    weir_cuda_ipc_address cuda_ipc_address;
    weir_cuda_ipc_key cuda_ipc_key;
    weir_file_address file_address;
    weir_file_key file_key;
    decode_of_groups(data, n_bytes);
    weir_ucx_address_decode(data, n_bytes, "fuzz", &ucx_address);
    weir_ucx_key_decode(data, n_bytes, "fuzz", &ucx_key);
    weir_cuda_ipc_address_decode(data, n_bytes, "fuzz", &cuda_ipc_address);
    weir_cuda_ipc_key_decode(data, n_bytes, "fuzz", &cuda_ipc_key);
    weir_file_address_decode(data, n_bytes, "fuzz", &file_address);
    if (weir_file_key_decode(data, n_bytes, "fuzz", &file_key) != WEIR_OK)
        return;
    for (size_t i = 0; i < file_key.n_segments; i++) {
        weir_file_segment segment = weir_file_key_segment(&file_key, i);
        if (segment.region_offset + segment.n_bytes > file_key.region_bytes)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    uint8_t *copy = malloc(n_bytes + (n_bytes == 0));
    if (copy == NULL)
        return 0;
    memcpy(copy, data, n_bytes);
    decode(copy, n_bytes);
    set_right(copy, n_bytes);
    decode(copy, n_bytes);
    free(copy);
    return 0;
}
