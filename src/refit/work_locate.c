/* SPDX-License-Identifier: Apache-2.0 */
/* work_locate.c - which memory a worker's tensors lie in, by their addresses or by name. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "refit/work.h"

static const char *name_of(uint32_t memory, unsigned device, char *text, size_t text_bytes)
{
    if (memory == WEIR_MEMORY_CUDA)
        snprintf(text, text_bytes, "on GPU %u", device);
    else
        snprintf(text, text_bytes, "in host memory");
    return text;
}

weir_status weir_work_locate_all(const weir_tensor *tensors, size_t n_tensors, uint32_t *out_memory,
                                 unsigned *out_device)
{
    const weir_tensor *first = NULL;
    *out_memory = WEIR_MEMORY_HOST;
    *out_device = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        uint32_t memory;
        unsigned device;
        char here[32], there[32];
        if (tensors[i].data == NULL)
            continue;
        weir_status status = weir_work_locate(tensors[i].data, &memory, &device);
        if (status != WEIR_OK)
            return status;
        if (first == NULL) {
            first = &tensors[i];
            *out_memory = memory;
            *out_device = device;
        } else if (memory != *out_memory || device != *out_device) {
            return weir_fail(WEIR_ERR_INVALID, "%s lies %s, but %s %s: all must lie in one place",
                             first->name, name_of(*out_memory, *out_device, there, sizeof(there)),
                             tensors[i].name, name_of(memory, device, here, sizeof(here)));
        }
    }
    return WEIR_OK;
}

weir_status weir_device_parse(const char *text, uint32_t *out_memory, unsigned *out_device)
{
    *out_memory = WEIR_MEMORY_HOST;
    *out_device = 0;
    if (text == NULL || text[0] == '\0' || strcmp(text, "host") == 0)
        return WEIR_OK;
    char *end = NULL;
    unsigned long device = 0;
    if (strncmp(text, "cuda:", 5) == 0 && text[5] >= '0' && text[5] <= '9')
        device = strtoul(text + 5, &end, 10);
    if (end == NULL || *end != '\0' || device > 1023)
        return weir_fail(WEIR_ERR_INVALID, "device '%s' is neither 'host' nor 'cuda:N'", text);
    *out_memory = WEIR_MEMORY_CUDA;
    *out_device = (unsigned)device;
    return WEIR_OK;
}
