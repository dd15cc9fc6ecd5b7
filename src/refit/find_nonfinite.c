/* SPDX-License-Identifier: Apache-2.0 */
/* find_nonfinite.c - a plain search over registered boxes, run only after a conversion has failed.
 */
#include "refit/find_nonfinite.h"

#include <string.h>

#include "base/error.h"
#include "convert/nonfinite.h"

static uint32_t bits_at(const unsigned char *data, size_t element_bytes, uint64_t index)
{
    uint32_t bits = 0;
    memcpy(&bits, data + index * element_bytes, element_bytes);
    return bits;
}

/* The number that element `local` of the box has in the whole tensor. */
static uint64_t number_of(const weir_tensor_shard *shard, uint64_t local)
{
    const weir_shape *shape = &shard->local.shape;
    uint64_t number = 0, step = 1;
    for (uint32_t d = shape->rank; d-- > 0; local /= shape->dim[d]) {
        number += (shard->box.lo[d] + local % shape->dim[d]) * step;
        step *= shard->global_shape.dim[d];
    }
    return number;
}

static weir_status search(const weir_tensor_shard *shard, bool rounds)
{
    const weir_tensor *local = &shard->local;
    uint64_t n_elements = 0;
    bool is_float =
        local->dtype == WEIR_BF16 || local->dtype == WEIR_F16 || local->dtype == WEIR_F32;
    if (!is_float || local->data == NULL || (rounds && local->dtype != WEIR_F32))
        return WEIR_OK;
    weir_status status = weir_shape_elements(&local->shape, &n_elements);
    size_t element_bytes = weir_dtype_bits(local->dtype) / 8;
    uint32_t magnitude = element_bytes == 2 ? 0x7FFFu : 0x7FFFFFFFu;
    uint32_t least = weir_nonfinite_least(local->dtype, rounds);
    for (uint64_t i = 0; i < n_elements && status == WEIR_OK; i++) {
        uint32_t bits = bits_at(local->data, element_bytes, i);
        if ((bits & magnitude) < least)
            continue;
        weir_tensor whole = { local->name, local->dtype, shard->global_shape, NULL };
        status = weir_nonfinite_fail(&whole, number_of(shard, i), bits);
    }
    return status;
}

weir_status weir_find_nonfinite(const weir_tensor_shard *shards, size_t n_shards, bool rounds)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n_shards && status == WEIR_OK; i++)
        status = search(&shards[i], false);
    for (size_t i = 0; i < n_shards && status == WEIR_OK && rounds; i++)
        status = search(&shards[i], true);
    return status;
}
