/* SPDX-License-Identifier: Apache-2.0 */
/* transport_key.c - encodes and decodes addresses and keys. What surrounds their fields is in
 * key_envelope.h; groups of transport ucx have ucx_group_message.c.
 */
#include "transport/transport_key.h"

#include <string.h>
#include <sys/un.h>

#include "base/error.h"

#define SEGMENT_BYTES 24u

/* ---- ucx -------------------------------------------------------------------------------------*/

weir_status weir_ucx_address_encode(const weir_ucx_address *address, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 'a');
    weir_key_put_blob(&to, address->ucx_version, strlen(address->ucx_version));
    weir_key_put_blob(&to, address->host, strlen(address->host));
    weir_key_put_number(&to, address->process, 4);
    weir_key_put_number(&to, address->greeting, 8);
    weir_key_put_number(&to, address->greeting_is, 8);
    weir_key_put_blob(&to, address->rkey, address->rkey_bytes);
    weir_key_put_blob(&to, address->worker, address->worker_bytes);
    if (address->stream_bytes > 0) {
        weir_key_set_version(&to, 2);
        weir_key_put_blob(&to, address->stream, address->stream_bytes);
    }
    return weir_key_end(&to);
}

weir_status weir_ucx_address_decode(const void *data, size_t n_bytes, const char *who,
                                    weir_ucx_address *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 'a', &from);
    if (status != WEIR_OK)
        return status;
    weir_key_take_text(&from, out->ucx_version, sizeof(out->ucx_version));
    weir_key_take_text(&from, out->host, sizeof(out->host));
    out->process = (uint32_t)weir_key_take_number(&from, 4);
    out->greeting = weir_key_take_number(&from, 8);
    out->greeting_is = weir_key_take_number(&from, 8);
    out->rkey = weir_key_take_blob(&from, &out->rkey_bytes);
    out->worker = weir_key_take_blob(&from, &out->worker_bytes);
    if (out->worker_bytes == 0 || out->rkey_bytes == 0)
        from.failed = true;
    out->stream = NULL;
    out->stream_bytes = 0;
    if (from.version == 2)
        out->stream = weir_key_take_blob(&from, &out->stream_bytes);
    return weir_key_check_end(&from, who, "address of transport ucx");
}

weir_status weir_ucx_key_encode(const weir_ucx_key *key, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'u', 'k');
    weir_key_put_blob(&to, key->ucx_version, strlen(key->ucx_version));
    weir_key_put_number(&to, key->base, 8);
    weir_key_put_number(&to, key->n_bytes, 8);
    weir_key_put_blob(&to, key->rkey, key->rkey_bytes);
    return weir_key_end(&to);
}

weir_status weir_ucx_key_decode(const void *data, size_t n_bytes, const char *who,
                                weir_ucx_key *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'u', 'k', &from);
    if (status != WEIR_OK)
        return status;
    weir_key_take_text(&from, out->ucx_version, sizeof(out->ucx_version));
    out->base = weir_key_take_number(&from, 8);
    out->n_bytes = weir_key_take_number(&from, 8);
    out->rkey = weir_key_take_blob(&from, &out->rkey_bytes);
    if (out->rkey_bytes == 0 || out->base > UINT64_MAX - out->n_bytes)
        from.failed = true;
    return weir_key_check_end(&from, who, "key of transport ucx");
}

/* ---- cuda_ipc --------------------------------------------------------------------------------*/

weir_status weir_cuda_ipc_address_encode(const weir_cuda_ipc_address *address, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'c', 'a');
    weir_key_put_blob(&to, address->host, strlen(address->host));
    weir_key_put_blob(&to, address->place, strlen(address->place));
    weir_key_put_blob(&to, address->socket, strlen(address->socket));
    weir_key_put_blob(&to, address->gpu, strlen(address->gpu));
    weir_key_put_number(&to, address->process, 4);
    weir_key_put_number(&to, address->owner[0], 8);
    weir_key_put_number(&to, address->owner[1], 8);
    return weir_key_end(&to);
}

weir_status weir_cuda_ipc_address_decode(const void *data, size_t n_bytes, const char *who,
                                         weir_cuda_ipc_address *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'c', 'a', &from);
    if (status != WEIR_OK)
        return status;
    weir_key_take_text(&from, out->host, sizeof(out->host));
    weir_key_take_text(&from, out->place, sizeof(out->place));
    weir_key_take_text(&from, out->socket, sizeof(out->socket));
    weir_key_take_text(&from, out->gpu, sizeof(out->gpu));
    out->process = (uint32_t)weir_key_take_number(&from, 4);
    out->owner[0] = weir_key_take_number(&from, 8);
    out->owner[1] = weir_key_take_number(&from, 8);
    if (out->socket[0] == '\0' ||
        strlen(out->socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
        from.failed = true;
    return weir_key_check_end(&from, who, "address of transport cuda_ipc");
}

weir_status weir_cuda_ipc_key_encode(const weir_cuda_ipc_key *key, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'c', 'k');
    weir_key_put_number(&to, key->owner[0], 8);
    weir_key_put_number(&to, key->owner[1], 8);
    weir_key_put_number(&to, key->region, 8);
    weir_key_put_number(&to, key->n_bytes, 8);
    return weir_key_end(&to);
}

weir_status weir_cuda_ipc_key_decode(const void *data, size_t n_bytes, const char *who,
                                     weir_cuda_ipc_key *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'c', 'k', &from);
    if (status != WEIR_OK)
        return status;
    out->owner[0] = weir_key_take_number(&from, 8);
    out->owner[1] = weir_key_take_number(&from, 8);
    out->region = weir_key_take_number(&from, 8);
    out->n_bytes = weir_key_take_number(&from, 8);
    return weir_key_check_end(&from, who, "key of transport cuda_ipc");
}

/* ---- file ------------------------------------------------------------------------------------*/

weir_status weir_file_address_encode(const weir_file_address *address, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'f', 'a');
    weir_key_put_blob(&to, address->name, strlen(address->name));
    return weir_key_end(&to);
}

weir_status weir_file_address_decode(const void *data, size_t n_bytes, const char *who,
                                     weir_file_address *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'f', 'a', &from);
    if (status != WEIR_OK)
        return status;
    weir_key_take_text(&from, out->name, sizeof(out->name));
    return weir_key_check_end(&from, who, "address of transport file");
}

weir_status weir_file_key_encode(const weir_file_key *key, weir_key_buffer *out)
{
    weir_key_writer to = weir_key_begin(out, 'f', 'k');
    weir_key_put_blob(&to, key->path, strlen(key->path));
    weir_key_put_number(&to, key->nonce[0], 8);
    weir_key_put_number(&to, key->nonce[1], 8);
    weir_key_put_number(&to, key->region_bytes, 8);
    weir_key_put_number(&to, key->file_bytes, 8);
    weir_key_put_number(&to, key->n_segments, 4);
    for (size_t i = 0; i < key->n_segments; i++) {
        weir_key_put_number(&to, key->segments[i].region_offset, 8);
        weir_key_put_number(&to, key->segments[i].file_offset, 8);
        weir_key_put_number(&to, key->segments[i].n_bytes, 8);
    }
    return weir_key_end(&to);
}

/* "." and "..", a hidden name and the empty one are no part of a path that we made. */
static bool part_is_plain(const char *part, size_t n_bytes)
{
    return n_bytes > 0 && part[0] != '.' && memchr(part, '/', n_bytes) == NULL;
}

static bool path_is_plain(const char *path)
{
    const char *slash = strchr(path, '/');
    return slash != NULL && part_is_plain(path, (size_t)(slash - path)) &&
           part_is_plain(slash + 1, strlen(slash + 1));
}

weir_file_segment weir_file_key_segment(const weir_file_key *key, size_t index)
{
    const uint8_t *at = key->segment_data + index * SEGMENT_BYTES;
    return (weir_file_segment){ weir_key_load_number(at, 8), weir_key_load_number(at + 8, 8),
                                weir_key_load_number(at + 16, 8) };
}

static bool segments_are_sound(const weir_file_key *key)
{
    uint64_t end_of_last = 0;
    for (size_t i = 0; i < key->n_segments; i++) {
        weir_file_segment segment = weir_file_key_segment(key, i);
        uint64_t region_end, file_end;
        if (segment.region_offset < end_of_last || segment.n_bytes == 0 ||
            __builtin_add_overflow(segment.region_offset, segment.n_bytes, &region_end) ||
            __builtin_add_overflow(segment.file_offset, segment.n_bytes, &file_end) ||
            region_end > key->region_bytes || file_end > key->file_bytes)
            return false;
        end_of_last = region_end;
    }
    return true;
}

weir_status weir_file_key_decode(const void *data, size_t n_bytes, const char *who,
                                 weir_file_key *out)
{
    weir_key_reader from;
    weir_status status = weir_key_open(data, n_bytes, who, 'f', 'k', &from);
    if (status != WEIR_OK)
        return status;
    weir_key_take_text(&from, out->path, sizeof(out->path));
    out->nonce[0] = weir_key_take_number(&from, 8);
    out->nonce[1] = weir_key_take_number(&from, 8);
    out->region_bytes = weir_key_take_number(&from, 8);
    out->file_bytes = weir_key_take_number(&from, 8);
    out->segments = NULL;
    out->n_segments = (size_t)weir_key_take_number(&from, 4);
    out->segment_data = weir_key_take(&from, (uint64_t)out->n_segments * SEGMENT_BYTES);
    if (!from.failed && !path_is_plain(out->path))
        return weir_fail(WEIR_ERR_CORRUPT, "%s: key names '%s', which is no sealed region", who,
                         out->path);
    if (!from.failed && !segments_are_sound(out))
        return weir_fail(WEIR_ERR_CORRUPT, "%s: key of %s has segments that overlap or overflow",
                         who, out->path);
    return weir_key_check_end(&from, who, "key of transport file");
}
