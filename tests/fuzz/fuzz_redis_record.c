/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_redis_record.c - anything that a Redis can answer, where entries, snapshots, positions and
 * times are expected: what is read lies within the answer. hiredis itself parses it first. */
#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "directory/redis_record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_entries(const redisReply *reply)
{
    const redisReply *entries = weir_redis_entries(reply);
    for (size_t i = 0; entries != NULL && i < entries->elements; i++) {
        weir_redis_entry entry;
        if (!weir_redis_entry_read(entries->element[i], &entry) || !entry.is_known)
            continue;
        volatile unsigned char sum = 0;
        for (size_t k = 0; k < entry.record.n_bytes; k++)
            sum = (unsigned char)(sum + entry.record.bytes[k]);
        if (strlen(entry.method) >= sizeof(entry.method) || entry.is_restored)
            abort();
    }
}

static void read_snapshot(const redisReply *reply)
{
    weir_redis_position position;
    unsigned char *bytes = NULL;
    size_t n_bytes = 0;
    if (weir_redis_snapshot_read(reply, &position, &bytes, &n_bytes) != WEIR_OK)
        return;
    volatile unsigned char sum = 0;
    for (size_t i = 0; i < n_bytes; i++)
        sum = (unsigned char)(sum + bytes[i]); /* none is left unset */
    weir_free(bytes);
}

/* hiredis takes memory for as many elements as an array says it has. */
static bool has_long_array(const uint8_t *data, size_t size)
{
    for (size_t i = 0, n = 0; i < size; i++) {
        bool is_count = data[i] == '*' || (n > 0 && data[i] != '\r');
        n = is_count ? n + 1 : 0;
        if (n > 4)
            return true;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (has_long_array(data, size))
        return 0;
    redisReader *reader = redisReaderCreate();
    void *answer = NULL;
    weir_redis_position position;
    redisReaderFeed(reader, (const char *)data, size);
    if (redisReaderGetReply(reader, &answer) == REDIS_OK && answer != NULL) {
        read_entries(answer);
        read_snapshot(answer);
        weir_redis_time_read(answer);
        if (weir_redis_position_read(answer, &position)) {
            char id[WEIR_REDIS_ID_TEXT];
            weir_redis_id_format(&position, id);
        }
        freeReplyObject(answer);
    }
    redisReaderFree(reader);
    return 0;
}
