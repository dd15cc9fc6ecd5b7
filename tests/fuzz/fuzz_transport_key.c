/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_transport_key.c - addresses and keys from other processes, with a checksum that fits. */
#include <stdlib.h>
#include <string.h>

#include "transport/key_reseal.h"
#include "transport/transport_key.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void decode(const uint8_t *data, size_t n_bytes)
{
    weir_ucx_address ucx_address;
    weir_ucx_key ucx_key;
    weir_cuda_ipc_address cuda_ipc_address;
    weir_cuda_ipc_key cuda_ipc_key;
    weir_file_address file_address;
    weir_file_key file_key;
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
    key_set_right(copy, n_bytes);
    decode(copy, n_bytes);
    if (n_bytes >= WEIR_KEY_HEAD_BYTES + WEIR_KEY_CHECK_BYTES) {
        key_store(copy + 6, 2, 2); /* of addresses that say where their process listens */
        key_reseal(copy, n_bytes);
        decode(copy, n_bytes);
    }
    free(copy);
    return 0;
}
