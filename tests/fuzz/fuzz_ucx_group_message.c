/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_ucx_group_message.c - what whoever connects to a rank of a broadcast group of transport ucx
 * says: as it comes, with a head and checksum that fit, and one message after another as a
 * connection takes them apart.
 */
#include <stdlib.h>
#include <string.h>

#include "transport/key_reseal.h"
#include "transport/ucx_group_message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void decode(const uint8_t *data, size_t n_bytes)
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

/* No message is empty, so this ends. */
static void take_apart(const uint8_t *data, size_t n_bytes)
{
    char kind;
    size_t message_bytes;
    while (weir_ucx_message_kind(data, n_bytes, &kind, &message_bytes) == WEIR_OK &&
           message_bytes > 0 && message_bytes <= n_bytes) {
        decode(data, message_bytes);
        data += message_bytes;
        n_bytes -= message_bytes;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    uint8_t *copy = malloc(n_bytes + (n_bytes == 0));
    if (copy == NULL)
        return 0;
    memcpy(copy, data, n_bytes);
    decode(copy, n_bytes);
    take_apart(copy, n_bytes);
    key_set_right(copy, n_bytes);
    decode(copy, n_bytes);
    free(copy);
    return 0;
}
