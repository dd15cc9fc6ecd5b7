/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_frame_link.c - any bytes as a stream of frames: cut within bounds, and the same wherever the
 * network cuts it. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/frame_link.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Parses from a block of the very size, so that the sanitizer sees a byte too far. */
static weir_status parse_exactly(const uint8_t *data, size_t size, weir_frame *out, size_t *out_n)
{
    uint8_t *copy = malloc(size + (size == 0));
    if (copy == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(copy, data, size);
    weir_status status = weir_frame_parse(copy, size, out, out_n);
    if (status == WEIR_OK && ((const uint8_t *)out->payload != copy + WEIR_FRAME_HEADER_BYTES ||
                              out->n_bytes != *out_n - WEIR_FRAME_HEADER_BYTES || *out_n > size))
        abort();
    free(copy);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    while (size != 0) {
        weir_frame frame, again;
        size_t n_bytes = 0, n_again = 0;
        weir_status status = parse_exactly(data, size, &frame, &n_bytes);
        if (status == WEIR_ERR_CORRUPT)
            return 0;
        if (n_bytes < WEIR_FRAME_HEADER_BYTES ||
            n_bytes > WEIR_FRAME_HEADER_BYTES + WEIR_FRAME_MAX_BYTES)
            abort();
        if (status == WEIR_IN_PROGRESS && n_bytes <= size)
            abort(); /* a link would ask for bytes that it has */
        if (status != WEIR_OK)
            return 0;
        for (size_t cut = 0; cut < n_bytes; cut += cut < 20 ? 1 : 1 + cut) {
            if (parse_exactly(data, cut, &again, &n_again) != WEIR_IN_PROGRESS || n_again <= cut)
                abort();
        }
        data += n_bytes;
        size -= n_bytes;
    }
    return 0;
}
