/* SPDX-License-Identifier: Apache-2.0 */
/* file_read.c - reads what another process sealed into the shared directory.
 *
 * A key leads to one file, opened once: a reader that has it goes on reading it even while a later
 * seal takes its name away. Keys come from outside, so no link is followed and no path leaves the
 * directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "transport/file.h"
#include "transport/transport_table.h"

#define TURN_BYTES ((uint64_t)4 << 20) /* of one test: a millisecond or two from the page cache */

typedef struct file_remote {
    weir_remote_region base;
    int fd;
    char path[WEIR_KEY_PATH];
    uint64_t n_bytes;
    size_t n_segments;
    weir_file_segment segments[];
} file_remote;

typedef struct file_transfer {
    weir_transfer base;
    const weir_copy *copies;
    size_t n_copies;
    size_t next_copy; /* the next byte to read: this copy, this far into it */
    uint64_t next_offset;
    uint64_t done_bytes;
    weir_status status;
    bool open;
    weir_error_line error;
} file_transfer;

typedef struct file_peer {
    weir_peer base;
    file_transfer transfer; /* the one that a peer runs at a time */
    char who[];
} file_peer;

/* ---- peers and regions -----------------------------------------------------------------------*/

weir_status weir_file_connect(weir_transport *transport, const void *address, size_t n_bytes,
                              const char *who, unsigned timeout_ms, weir_peer **out)
{
    (void)timeout_ms; /* there is nobody to wait for */
    weir_file_address decoded;
    weir_status status = weir_file_address_decode(address, n_bytes, who, &decoded);
    if (status != WEIR_OK)
        return status;
    size_t who_bytes = strlen(who) + 1;
    file_peer *peer = weir_alloc_zeroed(1, sizeof(*peer) + who_bytes);
    if (peer == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(peer->who, who, who_bytes);
    peer->base = (weir_peer){ transport, peer->who };
    *out = &peer->base;
    return WEIR_OK;
}

void weir_file_disconnect(weir_peer *peer)
{
    weir_free(peer);
}

static weir_status fail_at(const char *who, const file_transport *file, const char *path,
                           const char *what)
{
    return weir_fail_errno("%s: %s/%s: %s", who, file->directory, path, what);
}

static weir_status open_model(const file_transport *file, const weir_file_key *key, const char *who,
                              int *out_fd)
{
    char model[WEIR_KEY_PATH];
    snprintf(model, sizeof(model), "%.*s", (int)strcspn(key->path, "/"), key->path);
    *out_fd = openat(file->directory_fd, model, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return *out_fd < 0 ? fail_at(who, file, model, "cannot open") : WEIR_OK;
}

static int open_beside(int model_fd, const weir_file_key *key, const char *suffix)
{
    char name[WEIR_KEY_PATH + 32];
    snprintf(name, sizeof(name), "%s%s", strchr(key->path, '/') + 1, suffix);
    return openat(model_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

static weir_status check_marker(const file_transport *file, int model_fd, const weir_file_key *key,
                                const char *who)
{
    char expected[WEIR_FILE_MARKER_BYTES], got[WEIR_FILE_MARKER_BYTES];
    weir_file_marker(key->nonce, expected);
    int fd = open_beside(model_fd, key, WEIR_FILE_MARKER);
    if (fd < 0)
        return fail_at(who, file, key->path, "no marker: replaced, or not sealed");
    ssize_t n = read(fd, got, sizeof(got));
    close(fd);
    if (n != (ssize_t)strlen(expected) || memcmp(got, expected, (size_t)n) != 0)
        return weir_fail(WEIR_ERR_NOT_FOUND, "%s: %s/%s: its marker is of another seal", who,
                         file->directory, key->path);
    return WEIR_OK;
}

static weir_status open_data(const file_transport *file, int model_fd, const weir_file_key *key,
                             const char *who, int *out_fd)
{
    struct stat info;
    int fd = open_beside(model_fd, key, WEIR_FILE_DATA);
    if (fd < 0 || fstat(fd, &info) != 0) {
        weir_status status = fail_at(who, file, key->path, "cannot open its data");
        if (fd >= 0)
            close(fd);
        return status;
    }
    if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size != key->file_bytes) {
        close(fd);
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s/%s: file has %lld bytes, its key says %llu", who,
                         file->directory, key->path, (long long)info.st_size,
                         (unsigned long long)key->file_bytes);
    }
    *out_fd = fd;
    return WEIR_OK;
}

static weir_status open_sealed(const file_transport *file, const weir_file_key *key,
                               const char *who, int *out_fd)
{
    int model_fd;
    weir_status status = open_model(file, key, who, &model_fd);
    if (status != WEIR_OK)
        return status;
    status = check_marker(file, model_fd, key, who);
    if (status == WEIR_OK)
        status = open_data(file, model_fd, key, who, out_fd);
    close(model_fd);
    return status;
}

weir_status weir_file_import(weir_peer *peer, const void *data, size_t n_bytes,
                             weir_remote_region **out)
{
    weir_file_key key;
    weir_status status = weir_file_key_decode(data, n_bytes, peer->who, &key);
    if (status != WEIR_OK)
        return status;
    file_remote *remote =
        weir_alloc_zeroed(1, sizeof(*remote) + key.n_segments * sizeof(remote->segments[0]));
    if (remote == NULL)
        return WEIR_ERR_NO_MEMORY;
    status = open_sealed((const file_transport *)peer->transport, &key, peer->who, &remote->fd);
    if (status != WEIR_OK) {
        weir_free(remote);
        return status;
    }
    remote->base.peer = peer;
    remote->n_bytes = key.region_bytes;
    remote->n_segments = key.n_segments;
    memcpy(remote->path, key.path, sizeof(remote->path));
    for (size_t i = 0; i < key.n_segments; i++)
        remote->segments[i] = weir_file_key_segment(&key, i);
    *out = &remote->base;
    return WEIR_OK;
}

void weir_file_forget(weir_remote_region *base)
{
    if (base == NULL)
        return;
    close(((file_remote *)base)->fd);
    weir_free(base);
}

/* ---- transfers -------------------------------------------------------------------------------*/

/* The segment that holds byte `offset` of the region; NULL where nothing was sealed. */
static const weir_file_segment *segment_at(const file_remote *remote, uint64_t offset)
{
    size_t low = 0, high = remote->n_segments;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const weir_file_segment *segment = &remote->segments[middle];
        if (offset < segment->region_offset)
            high = middle;
        else if (offset - segment->region_offset >= segment->n_bytes)
            low = middle + 1;
        else
            return segment;
    }
    return NULL;
}

static weir_status check_copy(const file_peer *peer, size_t index, const weir_copy *copy)
{
    const file_remote *remote = (const file_remote *)copy->remote;
    uint64_t at = copy->offset, left = copy->n_bytes;
    weir_status status = weir_transport_bounds_check(copy, index, remote->n_bytes);
    if (status != WEIR_OK)
        return status;
    while (left > 0) {
        const weir_file_segment *segment = segment_at(remote, at);
        if (segment == NULL)
            return weir_fail(WEIR_ERR_INVALID,
                             "%s: copy %zu reads byte %llu of %s, which no tensor "
                             "that was sealed holds",
                             peer->who, index, (unsigned long long)at, remote->path);
        uint64_t n_bytes = segment->region_offset + segment->n_bytes - at;
        if (n_bytes > left)
            n_bytes = left;
        at += n_bytes;
        left -= n_bytes;
    }
    return WEIR_OK;
}

weir_status weir_file_post(weir_peer *base, const weir_copy *copies, size_t n_copies,
                           weir_transfer **out)
{
    file_peer *peer = (file_peer *)base;
    file_transfer *transfer = &peer->transfer;
    if (transfer->open)
        return weir_fail(WEIR_ERR_BUSY, "%s: a transfer is running already", peer->who);
    uint64_t n_bytes;
    weir_status status = weir_transport_copies_check(base, copies, n_copies, &n_bytes);
    for (size_t i = 0; i < n_copies && status == WEIR_OK; i++)
        status = check_copy(peer, i, &copies[i]);
    if (status != WEIR_OK)
        return status;
    transfer->base = (weir_transfer){ base, n_bytes };
    transfer->copies = copies;
    transfer->n_copies = n_copies;
    transfer->next_copy = 0;
    transfer->next_offset = 0;
    transfer->done_bytes = 0;
    transfer->status = WEIR_IN_PROGRESS;
    transfer->open = true;
    *out = &transfer->base;
    return WEIR_OK;
}

/* Reads on from where the transfer stands, at most limit_bytes. Gives what was read. */
static weir_status read_some(file_transfer *transfer, uint64_t limit_bytes, uint64_t *out_n_bytes)
{
    const weir_copy *copy = &transfer->copies[transfer->next_copy];
    const file_remote *remote = (const file_remote *)copy->remote;
    uint64_t at = copy->offset + transfer->next_offset;
    const weir_file_segment *segment = segment_at(remote, at);
    uint64_t into = at - segment->region_offset;
    uint64_t n_bytes = copy->n_bytes - transfer->next_offset;
    if (n_bytes > segment->n_bytes - into)
        n_bytes = segment->n_bytes - into;
    if (n_bytes > limit_bytes)
        n_bytes = limit_bytes;
    ssize_t n = pread(remote->fd, (uint8_t *)copy->local + transfer->next_offset, n_bytes,
                      (off_t)(segment->file_offset + into));
    if (n < 0 && errno != EINTR)
        return weir_fail_errno("%s: cannot read %s", transfer->base.peer->who, remote->path);
    if (n == 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: %s ends early", transfer->base.peer->who,
                         remote->path);
    *out_n_bytes = n > 0 ? (uint64_t)n : 0;
    return WEIR_OK;
}

static weir_status advance(file_transfer *transfer)
{
    uint64_t left = TURN_BYTES;
    while (transfer->next_copy < transfer->n_copies) {
        if (transfer->next_offset == transfer->copies[transfer->next_copy].n_bytes) {
            transfer->next_copy++;
            transfer->next_offset = 0;
            continue;
        }
        if (left == 0)
            return WEIR_IN_PROGRESS;
        uint64_t n_bytes = 0;
        weir_status status = read_some(transfer, left, &n_bytes);
        if (status != WEIR_OK)
            return status;
        transfer->next_offset += n_bytes;
        transfer->done_bytes += n_bytes;
        left -= n_bytes;
    }
    return WEIR_OK;
}

weir_status weir_file_test(weir_transfer *base, uint64_t *out_done)
{
    file_transfer *transfer = (file_transfer *)base;
    if (transfer->status == WEIR_IN_PROGRESS) {
        transfer->status = advance(transfer);
        if (transfer->status < 0)
            weir_error_save(&transfer->error);
    } else if (transfer->status < 0) {
        weir_error_restore(&transfer->error);
    }
    if (out_done != NULL)
        *out_done = transfer->done_bytes;
    return transfer->status;
}

/* Reading happens within test alone, so there is nothing to stop. */
void weir_file_finish(weir_transfer *base)
{
    if (base != NULL)
        ((file_transfer *)base)->open = false;
}
