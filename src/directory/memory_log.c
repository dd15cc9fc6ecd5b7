/* SPDX-License-Identifier: Apache-2.0 */
/* memory_log.c - the log of a directory that is alone: a record is applied where it is appended.
 *
 * Its time is Unix time as it was at the start, going on monotonically: a clock that is set must
 * not end every lease. */
#include "base/alloc.h"
#include "base/clock.h"
#include "directory/directory_log.h"

#define NS_PER_MS 1000000ull
#define TICK_MS 3600000u /* there is nothing to look after */

typedef struct memory_log {
    weir_directory_log log; /* first */
    weir_log_reader reader;
    uint64_t begun_unix_ms, begun_ns;
} memory_log;

static uint64_t now_ms(const weir_directory_log *log)
{
    const memory_log *memory = (const memory_log *)log;
    return memory->begun_unix_ms + (weir_now_ns() - memory->begun_ns) / NS_PER_MS;
}

static weir_status append(weir_directory_log *log, const weir_log_record *record, uint64_t ticket)
{
    const memory_log *memory = (const memory_log *)log;
    memory->reader.apply(memory->reader.context, record, now_ms(log), ticket);
    return WEIR_OK;
}

static weir_status catch_up(weir_directory_log *log, uint64_t ticket,
                            void (*then)(void *context, uint64_t ticket, uint64_t now_ms),
                            void *context)
{
    then(context, ticket, now_ms(log));
    return WEIR_OK;
}

static unsigned tick(weir_directory_log *log)
{
    (void)log;
    return TICK_MS;
}

static const char *trouble(const weir_directory_log *log)
{
    (void)log;
    return NULL;
}

static void close_log(weir_directory_log *log)
{
    weir_free(log);
}

static const weir_log_ops memory_ops = { append, catch_up, now_ms, tick, trouble, close_log };

weir_status weir_memory_log_open(const weir_log_reader *reader, weir_directory_log **out)
{
    memory_log *memory = weir_alloc_zeroed(1, sizeof(*memory));
    if (memory == NULL)
        return WEIR_ERR_NO_MEMORY;
    memory->log.ops = &memory_ops;
    memory->reader = *reader;
    memory->begun_unix_ms = weir_unix_ms();
    memory->begun_ns = weir_now_ns();
    weir_status status = reader->load(reader->context, NULL, 0);
    if (status != WEIR_OK) {
        weir_free(memory);
        return status;
    }
    *out = &memory->log;
    return WEIR_OK;
}
