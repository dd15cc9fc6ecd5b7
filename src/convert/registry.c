/* SPDX-License-Identifier: Apache-2.0 */
/* registry.c - conversions by name: the built-in rows and those registered at run time. */
#include "convert/registry.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "convert/kernels.h"

#define N_BUILT_IN 5

static weir_conversion built_in[N_BUILT_IN];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects what follows */
static const weir_conversion *first_rows[16];
static const weir_conversion **rows = first_rows;
static size_t n_rows, n_room = sizeof(first_rows) / sizeof(first_rows[0]);

static const weir_conversion *find(const char *name)
{
    for (size_t i = 0; i < n_rows; i++) {
        if (strcmp(rows[i]->name, name) == 0)
            return rows[i];
    }
    return NULL;
}

static weir_status grow(void)
{
    const weir_conversion **more = weir_alloc(2 * n_room * sizeof(*rows));
    if (more == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(more, rows, n_rows * sizeof(*rows));
    if (rows != first_rows)
        weir_free(rows);
    rows = more;
    n_room *= 2;
    return WEIR_OK;
}

static weir_status append(const weir_conversion *conversion)
{
    if (find(conversion->name) != NULL)
        return weir_fail(WEIR_ERR_EXISTS, "conversion '%s' is already registered",
                         conversion->name);
    weir_status status = n_rows == n_room ? grow() : WEIR_OK;
    if (status == WEIR_OK)
        rows[n_rows++] = conversion;
    return status;
}

static void add_built_in(void)
{
    const weir_kernel_table *kernels = weir_kernels();
    const weir_conversion *written[N_BUILT_IN] = { &weir_bf16_cast, &weir_fp32_cast,
                                                   &weir_fp8_128x128, &weir_fp8_channel,
                                                   &weir_neg_exp_row };
    weir_convert_fn fastest[N_BUILT_IN] = { kernels->bf16_cast, kernels->fp32_cast,
                                            kernels->fp8_128x128, kernels->fp8_channel, NULL };
    for (size_t i = 0; i < N_BUILT_IN; i++) {
        built_in[i] = *written[i];
        built_in[i].kernel = fastest[i];
        built_in[i].kernel_digests = fastest[i] != NULL;
        rows[n_rows++] = &built_in[i];
    }
}

/* ---- what a row must have --------------------------------------------------------------------*/

static weir_status refuse(const weir_conversion *conversion, const char *why)
{
    return weir_fail(WEIR_ERR_INVALID, "conversion '%s' cannot be registered: %s",
                     conversion->name != NULL ? conversion->name : "(null)", why);
}

static bool is_json_object(const char *text)
{
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    bool object = json_is_object(root);
    json_decref(root);
    return object;
}

/* Whether no cut along a border splits a cell. */
static bool cell_fits(size_t cell, size_t border)
{
    return border == WEIR_WHOLE || (cell != WEIR_WHOLE && border % cell == 0);
}

static weir_status check_outputs(const weir_conversion *conversion)
{
    if (conversion->n_outputs == 0 || conversion->n_outputs > WEIR_MAX_OUTPUTS)
        return refuse(conversion, "n_outputs must be 1 to 4");
    for (size_t i = 0; i < conversion->n_outputs; i++) {
        const weir_conversion_output *output = &conversion->outputs[i];
        if (output->suffix == NULL || output->suffix[0] == '\0')
            return refuse(conversion, "an output has no suffix");
        if (weir_dtype_bits(output->dtype) == 0)
            return refuse(conversion, "an output has no dtype");
        if (output->cell_rows == WEIR_WHOLE)
            return refuse(conversion, "a cell cannot span all rows");
        if (!cell_fits(output->cell_rows, conversion->border_rows) ||
            !cell_fits(output->cell_cols, conversion->border_cols))
            return refuse(conversion, "its border splits the cells of an output");
    }
    return WEIR_OK;
}

static weir_status check_row(const weir_conversion *conversion)
{
    if (conversion->name == NULL || conversion->name[0] == '\0')
        return refuse(conversion, "it has no name");
    if (conversion->compile_target == NULL || conversion->compile_target[0] == '\0')
        return refuse(conversion, "it has no compile target");
    if (conversion->compile_metadata == NULL || !is_json_object(conversion->compile_metadata))
        return refuse(conversion, "its compile metadata is no JSON object");
    if (conversion->sources == 0)
        return refuse(conversion, "it takes no source dtype");
    if (conversion->reference == NULL)
        return refuse(conversion, "it has no reference kernel");
    return check_outputs(conversion);
}

/* ---- interface -------------------------------------------------------------------------------*/

static weir_status register_own(const weir_conversion *own)
{
    weir_status status = check_row(own);
    if (status != WEIR_OK)
        return status;
    pthread_once(&once, add_built_in);
    pthread_mutex_lock(&lock);
    status = append(own);
    pthread_mutex_unlock(&lock);
    return status;
}

weir_status weir_conversion_register(const weir_conversion *conversion)
{
    weir_conversion *own = weir_alloc(sizeof(*own));
    if (own == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_options_read(conversion, "weir_conversion", own, sizeof(*own));
    if (status == WEIR_OK)
        status = register_own(own);
    if (status != WEIR_OK)
        weir_free(own);
    return status;
}

weir_status weir_conversion_get(const char *name, const weir_conversion **out)
{
    pthread_once(&once, add_built_in);
    pthread_mutex_lock(&lock);
    const weir_conversion *conversion = name != NULL ? find(name) : NULL;
    pthread_mutex_unlock(&lock);
    if (conversion == NULL) {
        char names[512];
        return weir_fail(WEIR_ERR_NOT_FOUND, "unknown conversion '%s'; registered: %s",
                         name != NULL ? name : "(null)",
                         weir_conversion_list(names, sizeof(names)));
    }
    *out = conversion;
    return WEIR_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

size_t weir_conversion_names(const char **names, size_t n_names)
{
    pthread_once(&once, add_built_in);
    pthread_mutex_lock(&lock);
    size_t n = n_rows;
    const char **all = weir_alloc(n * sizeof(*all));
    for (size_t i = 0; all != NULL && i < n; i++)
        all[i] = rows[i]->name;
    pthread_mutex_unlock(&lock);
    if (all == NULL)
        return 0;
    qsort(all, n, sizeof(*all), by_name);
    for (size_t i = 0; i < n && i < n_names; i++)
        names[i] = all[i];
    weir_free(all);
    return n;
}

const char *weir_conversion_list(char *buffer, size_t buffer_bytes)
{
    const char *names[64];
    size_t n = weir_conversion_names(names, 64), used = 1;
    snprintf(buffer, buffer_bytes, "[");
    for (size_t i = 0; i < n && i < 64 && used < buffer_bytes; i++) {
        int wrote = snprintf(buffer + used, buffer_bytes - used, "%s%s", i ? ", " : "", names[i]);
        used += wrote > 0 ? (size_t)wrote : 0;
    }
    if (used < buffer_bytes)
        snprintf(buffer + used, buffer_bytes - used, n > 64 ? ", ...]" : "]");
    return buffer;
}
