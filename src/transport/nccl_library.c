/* SPDX-License-Identifier: Apache-2.0 */
/* nccl_library.c - finds libnccl.so.2 at run time and takes from it what Weir calls.
 *
 * A process that holds PyTorch has a copy of NCCL already, and two of them would hold twice the
 * memory: that copy comes first. Nothing is searched for in other packages' folders.
 */
#include "transport/nccl_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/env.h"
#include "base/error.h"
#include "device/cuda_loader.h"

#define LIBRARY "libnccl.so.2"
#define VERSION_SYMBOL "ncclGetVersion"

typedef struct symbol {
    const char *name;
    size_t offset; /* of its pointer in weir_nccl_library */
} symbol;

static const symbol symbols[] = {
    { VERSION_SYMBOL, offsetof(weir_nccl_library, get_version) },
    { "ncclGetUniqueId", offsetof(weir_nccl_library, get_unique_id) },
    { "ncclCommInitRankConfig", offsetof(weir_nccl_library, init_rank) },
    { "ncclCommGetAsyncError", offsetof(weir_nccl_library, async_error) },
    { "ncclBroadcast", offsetof(weir_nccl_library, broadcast) },
    { "ncclGroupStart", offsetof(weir_nccl_library, group_start) },
    { "ncclGroupEnd", offsetof(weir_nccl_library, group_end) },
    { "ncclCommFinalize", offsetof(weir_nccl_library, finalize) },
    { "ncclCommAbort", offsetof(weir_nccl_library, abort) },
    { "ncclGetErrorString", offsetof(weir_nccl_library, error_text) },
    { "ncclGetLastError", offsetof(weir_nccl_library, last_error) },
};

typedef struct found {
    void *handle; /* for dlsym() */
    const char *name, *where;
} found;

static const char *linker_error(void)
{
    const char *text = dlerror();
    return text != NULL ? text : "no reason given";
}

static weir_status load(const char *name, const char *where, found *out)
{
    *out = (found){ dlopen(name, RTLD_NOW | RTLD_LOCAL), name, where };
    if (out->handle != NULL)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "NCCL is off: this process has none, and %s cannot be loaded: %s; "
                     "WEIR_NCCL_LIBRARY says where it is",
                     where, linker_error());
}

static weir_status find(found *out)
{
    const char *asked = weir_env_string(WEIR_ENV_NCCL_LIBRARY);
    *out = (found){ dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD), LIBRARY,
                    "already in this process" };
    if (out->handle != NULL)
        return WEIR_OK;
    out->handle = RTLD_DEFAULT; /* linked into the program, or into a library of it */
    if (dlsym(RTLD_DEFAULT, VERSION_SYMBOL) != NULL)
        return WEIR_OK;
    return asked != NULL ? load(asked, "what WEIR_NCCL_LIBRARY names", out)
                         : load(LIBRARY, LIBRARY, out);
}

/* All that exist; the first that does not, or NULL. */
static const char *take_symbols(void *handle, weir_nccl_library *out)
{
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *address = dlsym(handle, symbols[i].name);
        if (address == NULL)
            return symbols[i].name;
        memcpy((char *)out + symbols[i].offset, &address, sizeof(address));
    }
    return NULL;
}

static weir_status check_version(const weir_nccl_library *nccl, const found *library)
{
    int v = nccl->version;
    if (v >= WEIR_NCCL_MIN_VERSION)
        return WEIR_OK;
    int unit = v < 10000 ? 1000 : 10000; /* numbered differently up to 2.8 */
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "NCCL is off: %s (%s) is version %d.%d.%d, 2.14 or later is needed",
                     library->name, library->where, v / unit, v % unit / 100, v % 100);
}

/* A refused library stays loaded, too: it cannot be told whether it may be unloaded. */
weir_status weir_nccl_library_find(weir_nccl_library *out)
{
    found library;
    weir_nccl_library nccl = { 0 };
    weir_status status = find(&library);
    if (status != WEIR_OK)
        return status;
    const char *missing = take_symbols(library.handle, &nccl);
    if (nccl.get_version != NULL && nccl.get_version(&nccl.version) != WEIR_NCCL_SUCCESS)
        nccl.version = 0;
    if (nccl.version != 0) /* an old library lacks functions because it is old */
        status = check_version(&nccl, &library);
    if (status == WEIR_OK && missing != NULL)
        status = weir_fail(WEIR_ERR_UNSUPPORTED, "NCCL is off: %s (%s) has no %s", library.name,
                           library.where, missing);
    if (status == WEIR_OK && nccl.version == 0)
        status = weir_fail(WEIR_ERR_UNSUPPORTED, "NCCL is off: %s (%s) does not tell its version",
                           library.name, library.where);
    if (status == WEIR_OK)
        *out = nccl;
    return status;
}

static pthread_once_t once = PTHREAD_ONCE_INIT, why_once = PTHREAD_ONCE_INIT;
static weir_nccl_library the_library;
static weir_status the_status;
static weir_error_line the_error;
static weir_error_line why_not;

static void find_once(void)
{
    the_status = weir_nccl_library_find(&the_library);
    if (the_status != WEIR_OK)
        weir_error_save(&the_error);
}

weir_status weir_nccl_library_get(const weir_nccl_library **out)
{
    pthread_once(&once, find_once);
    if (the_status != WEIR_OK) {
        weir_error_restore(&the_error);
        return the_status;
    }
    *out = &the_library;
    return WEIR_OK;
}

/* Asking is no failure: the caller's last error stands. */
static void ask_once(void)
{
    weir_error_line before;
    const weir_cuda_runtime *cuda;
    const weir_nccl_library *nccl;
    weir_error_save(&before);
    if (weir_cuda_runtime_get(&cuda) != WEIR_OK || weir_nccl_library_get(&nccl) != WEIR_OK)
        weir_error_save(&why_not);
    weir_error_restore(&before);
}

const char *weir_nccl_why_not(void)
{
    pthread_once(&why_once, ask_once);
    return why_not.text;
}

static weir_status status_of(int result)
{
    switch (result) {
    case WEIR_NCCL_SYSTEM_ERROR: /* a socket of a peer, or shared memory of one */
    case WEIR_NCCL_REMOTE_ERROR:
        return WEIR_ERR_PEER_LOST;
    case WEIR_NCCL_INVALID_ARGUMENT:
        return WEIR_ERR_INVALID;
    case WEIR_NCCL_INVALID_USAGE: /* two ranks on one GPU, say */
        return WEIR_ERR_UNSUPPORTED;
    default:
        return WEIR_ERR_DEVICE;
    }
}

weir_status weir_nccl_fail(const weir_nccl_library *nccl, int result, const char *who,
                           const char *what)
{
    const char *text = nccl->error_text(result), *last = nccl->last_error(NULL);
    bool more = last != NULL && last[0] != '\0';
    return weir_fail(status_of(result), "%s: %s: NCCL says %s%s%s%s", who, what,
                     text != NULL ? text : "nothing", more ? " (" : "", more ? last : "",
                     more ? ")" : "");
}
