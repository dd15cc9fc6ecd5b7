/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_loader.c - finds libweir_cuda.so and asks it for a GPU.
 *
 * It is looked for where WEIR_CUDA_LIBRARY says, else beside the file that this code is in, else by
 * the dynamic linker. It stays loaded: the CUDA runtime inside it cannot be unloaded safely.
 */
#include "device/cuda_loader.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/env.h"
#include "base/error.h"

#define LIBRARY "libweir_cuda.so"
#define CUDA_OUT_OF_MEMORY 2 /* cudaErrorMemoryAllocation */
/* What the runtime says when there is no driver at all, too. */
#define CUDA_INSUFFICIENT_DRIVER 35
#define CUDA_NO_DEVICE 100

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const weir_cuda_backend *backend; /* NULL: why_not says why */
static char why_not[512];

/* The path of LIBRARY in the directory of the object that holds this function. */
static const char *path_beside_us(char *buffer, size_t buffer_bytes)
{
    Dl_info info;
    const char *slash = NULL;
    if (dladdr((const void *)&once, &info) != 0 && info.dli_fname != NULL)
        slash = strrchr(info.dli_fname, '/');
    if (slash == NULL)
        return LIBRARY;
    int n = snprintf(buffer, buffer_bytes, "%.*s/" LIBRARY, (int)(slash - info.dli_fname),
                     info.dli_fname);
    return n > 0 && (size_t)n < buffer_bytes ? buffer : LIBRARY;
}

static void *open_library(void)
{
    char path[1024];
    const char *asked = weir_env_string(WEIR_ENV_CUDA_LIBRARY);
    if (asked != NULL)
        return dlopen(asked, RTLD_NOW | RTLD_LOCAL);
    void *library = dlopen(path_beside_us(path, sizeof(path)), RTLD_NOW | RTLD_LOCAL);
    return library != NULL ? library : dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
}

/* The runtime has one error for none and for an old one. */
static bool has_driver(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver != NULL)
        dlclose(driver);
    return driver != NULL;
}

static bool find_gpu(const weir_cuda_runtime *cuda)
{
    int n = 0, error = cuda->count_devices(&n);
    if (error == CUDA_INSUFFICIENT_DRIVER)
        snprintf(why_not, sizeof(why_not), "%s",
                 has_driver() ? "the NVIDIA driver is too old for CUDA 13" : "no NVIDIA driver");
    else if (error == CUDA_NO_DEVICE || (error == 0 && n == 0))
        snprintf(why_not, sizeof(why_not), "no NVIDIA GPU");
    else if (error != 0)
        snprintf(why_not, sizeof(why_not), "CUDA failed to start: %s", cuda->error_text(error));
    return error == 0 && n > 0;
}

static void load(void)
{
    void *library = open_library();
    if (library == NULL) {
        const char *reason = dlerror();
        snprintf(why_not, sizeof(why_not), LIBRARY " cannot be loaded: %s",
                 reason != NULL ? reason : "no reason given");
        return;
    }
    const weir_cuda_backend *table = dlsym(library, WEIR_CUDA_BACKEND_SYMBOL);
    if (table == NULL || table->size != sizeof(*table) ||
        table->version != WEIR_CUDA_BACKEND_VERSION ||
        table->runtime->size != sizeof(*table->runtime)) {
        snprintf(why_not, sizeof(why_not), LIBRARY " is of another version of Weir");
        dlclose(library);
        return;
    }
    if (find_gpu(table->runtime))
        backend = table;
}

static weir_status backend_get(void)
{
    pthread_once(&once, load);
    return backend != NULL ? WEIR_OK : weir_fail(WEIR_ERR_UNSUPPORTED, "CUDA is off: %s", why_not);
}

const char *weir_cuda_why_not(void)
{
    pthread_once(&once, load);
    return backend != NULL ? "" : why_not;
}

weir_status weir_cuda_runtime_get(const weir_cuda_runtime **out)
{
    weir_status status = backend_get();
    if (status == WEIR_OK)
        *out = backend->runtime;
    return status;
}

weir_status weir_cuda_converter_get(const struct weir_cuda_converter **out)
{
    weir_status status = backend_get();
    if (status == WEIR_OK)
        *out = backend->converter;
    return status;
}

weir_status weir_cuda_check(int error, const char *format, ...)
{
    if (error == 0)
        return WEIR_OK;
    char what[WEIR_ERROR_TEXT / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    if (error == WEIR_CUDA_NOT_READY)
        return weir_fail(WEIR_ERR_TIMED_OUT, "timed out: %s: it has not ended", what);
    return weir_fail(error == CUDA_OUT_OF_MEMORY ? WEIR_ERR_NO_MEMORY : WEIR_ERR_DEVICE,
                     "%s: CUDA says %s (%d)", what,
                     backend != NULL ? backend->runtime->error_text(error) : "nothing", error);
}
