/* SPDX-License-Identifier: Apache-2.0 */
/* file.c - transport file: a shared directory stands between trainer and replica.
 *
 * Slower than a link and twice over the disk, but it needs nothing else of the two, and what is
 * sealed outlives the process that sealed it.
 */
#include "transport/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "device/host.h"
#include "transport/transport_lacks.h"
#include "transport/transport_table.h"

static weir_status open_directory(file_transport *file, const char *path)
{
    if (path == NULL || path[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "transport file: no shared directory is given");
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        return weir_fail_errno("transport file: cannot make %s", path);
    file->directory = weir_strdup(path);
    if (file->directory == NULL)
        return WEIR_ERR_NO_MEMORY;
    file->directory_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file->directory_fd < 0)
        return weir_fail_errno("transport file: cannot open %s", path);
    return WEIR_OK;
}

static void close_transport(weir_transport *transport)
{
    if (transport == NULL)
        return;
    file_transport *file = (file_transport *)transport;
    if (file->directory_fd >= 0)
        close(file->directory_fd);
    weir_key_buffer_close(&file->address);
    weir_free(file->directory);
    weir_free(file);
}

static weir_status open_transport(const weir_transport_options *given, weir_transport **out)
{
    weir_transport_options options;
    weir_status status =
        weir_transport_struct_read(given, sizeof(options), "weir_transport_options", &options);
    if (status != WEIR_OK)
        return status;
    file_transport *file = weir_alloc_zeroed(1, sizeof(*file));
    if (file == NULL)
        return WEIR_ERR_NO_MEMORY;
    file->base.ops = &weir_transport_file;
    file->directory_fd = -1;
    weir_file_address address = { "" };
    snprintf(address.name, sizeof(address.name), "%s", options.name != NULL ? options.name : "");
    status = weir_file_address_encode(&address, &file->address);
    if (status == WEIR_OK)
        status = open_directory(file, options.directory);
    if (status != WEIR_OK) {
        close_transport(&file->base);
        return status;
    }
    *out = &file->base;
    return WEIR_OK;
}

static weir_status open_region(weir_transport *transport, void *data, uint64_t n_bytes,
                               weir_region **out)
{
    file_region *region = weir_alloc_zeroed(1, sizeof(*region));
    if (region == NULL)
        return WEIR_ERR_NO_MEMORY;
    region->base.transport = transport;
    region->n_bytes = n_bytes;
    region->data = data;
    region->allocated = data == NULL;
    if (region->allocated) {
        weir_status status = weir_host_allocate(n_bytes, &region->data);
        if (status != WEIR_OK) {
            weir_free(region);
            return status;
        }
    }
    *out = &region->base;
    return WEIR_OK;
}

static weir_status allocate(weir_transport *transport, uint64_t n_bytes, weir_region **out)
{
    return open_region(transport, NULL, n_bytes, out);
}

static weir_status expose(weir_transport *transport, void *data, uint64_t n_bytes,
                          weir_region **out)
{
    if (data == NULL)
        return weir_fail(WEIR_ERR_INVALID, "transport file: no memory to expose");
    return open_region(transport, data, n_bytes, out);
}

/* What was sealed stays: it is durable, and readers may come long after us. */
static void release(weir_region *base)
{
    if (base == NULL)
        return;
    file_region *region = (file_region *)base;
    if (region->allocated)
        weir_host_free(region->data, region->n_bytes);
    weir_key_buffer_close(&region->key);
    weir_free(region);
}

static void *region_data(weir_region *region)
{
    return ((file_region *)region)->data;
}

static weir_status region_key(weir_region *base, const void **out_key, size_t *out_n_bytes)
{
    file_region *region = (file_region *)base;
    if (!region->sealed)
        return weir_fail(WEIR_ERR_INVALID, "transport file: a region has no key before its seal");
    *out_key = region->key.data;
    *out_n_bytes = region->key.n_bytes;
    return WEIR_OK;
}

static weir_status address_of(weir_transport *transport, const void **out, size_t *out_n_bytes)
{
    file_transport *file = (file_transport *)transport;
    *out = file->address.data;
    *out_n_bytes = file->address.n_bytes;
    return WEIR_OK;
}

const weir_transport_ops weir_transport_file = {
    .size = sizeof(weir_transport_ops),
    .name = "file",
    .caps = WEIR_CAP_READ | WEIR_CAP_DURABLE,
    .memory = WEIR_MEMORY_HOST,
    .open = open_transport,
    .close = close_transport,
    .allocate = allocate,
    .expose = expose,
    .release = release,
    .region_data = region_data,
    .seal = weir_file_seal,
    .region_key = region_key,
    .address = address_of,
    .connect = weir_file_connect,
    .disconnect = weir_file_disconnect,
    .import = weir_file_import,
    .forget = weir_file_forget,
    .post = weir_file_post,
    .test = weir_file_test,
    .finish = weir_file_finish,
    WEIR_TRANSPORT_LACKS_MAP,
    WEIR_TRANSPORT_LACKS_GROUPS,
};
