/* SPDX-License-Identifier: Apache-2.0 */
/* signature.c - a layout in 32 hex digits: what two sides compare before they plan anything. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "weir/plan.h"

/* One line per parameter. Lengths stand before texts, so no name can pass for two. Returns the
 * bytes of the line; writes it when `line` is not NULL. */
static size_t write_line(const weir_parameter *p, char *line, size_t line_bytes)
{
    char shape[WEIR_SHAPE_TEXT];
    int n = snprintf(line, line_bytes, "%zu:%s %s %s %zu:%s %zu:%s\n", strlen(p->name), p->name,
                     weir_dtype_name(p->dtype), weir_shape_text(&p->shape, shape, sizeof(shape)),
                     strlen(p->compile_target), p->compile_target, strlen(p->compile_metadata),
                     p->compile_metadata);
    return n > 0 ? (size_t)n : 0;
}

weir_status weir_layout_signature(const weir_parameter *parameters, size_t n_parameters,
                                  char out[33])
{
    size_t n_bytes = 0;
    for (size_t i = 0; i < n_parameters; i++)
        n_bytes += write_line(&parameters[i], NULL, 0);
    char *text = weir_alloc(n_bytes + 1);
    if (text == NULL)
        return WEIR_ERR_NO_MEMORY;
    size_t used = 0;
    for (size_t i = 0; i < n_parameters; i++)
        used += write_line(&parameters[i], text + used, n_bytes + 1 - used);
    weir_digest digest = { 0, 0 };
    weir_digest_add(&digest, text, 1, used);
    weir_free(text);
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, digest.product, digest.sum);
    return WEIR_OK;
}
