/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a safetensors file. What is accepted must hold what safetensors.h promises, for
 * readers use it without another check. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "checkpoint/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static void demand(bool promise)
{
    if (!promise)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    weir_safetensors header;
    if (weir_safetensors_parse(bytes, n_bytes, "fuzz", &header) != WEIR_OK) {
        demand(weir_last_error()[0] != '\0');
        return 0;
    }
    uint64_t at = header.n_entries > 0 ? header.entries[0].begin : n_bytes;
    for (size_t i = 0; i < header.n_entries; i++) {
        const weir_safetensors_entry *entry = &header.entries[i];
        uint64_t needed;
        demand(weir_tensor_bytes(entry->dtype, &entry->shape, &needed) == WEIR_OK);
        demand(entry->begin == at && entry->end - entry->begin == needed);
        at = entry->end;
    }
    demand(at == n_bytes);
    weir_safetensors_free(&header);
    return 0;
}
