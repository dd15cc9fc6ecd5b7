/* SPDX-License-Identifier: Apache-2.0 */
/* made_up_log.h - a log whose clock is set by hand. Either it applies at once, as the memory log
 * does, or it keeps records and questions until they are delivered, as one over a network does. */
#ifndef WEIR_TEST_MADE_UP_LOG_H
#define WEIR_TEST_MADE_UP_LOG_H

#include <stdlib.h>
#include <string.h>

#include "directory/directory_log.h"

typedef struct made_up_item {
    bool is_record;
    char method[80], trace_id[40];
    unsigned char *bytes;
    size_t n_bytes;
    uint64_t salt, ticket;
    void (*then)(void *context, uint64_t ticket, uint64_t now_ms);
    void *context;
} made_up_item;

#define MADE_UP_ITEMS 64

typedef struct made_up_log {
    weir_directory_log log; /* first */
    weir_log_reader reader;
    uint64_t now_ms;
    bool is_slow;   /* keeps items until made_up_log_deliver() */
    bool is_broken; /* refuses all */
    unsigned n_records;
    made_up_item items[MADE_UP_ITEMS];
    unsigned n_items;
} made_up_log;

static inline weir_status made_up_keep(made_up_log *log, const made_up_item *item)
{
    if (log->n_items == MADE_UP_ITEMS)
        return WEIR_ERR_NO_MEMORY;
    log->items[log->n_items++] = *item;
    return WEIR_OK;
}

static inline weir_status made_up_append(weir_directory_log *self, const weir_log_record *record,
                                         uint64_t ticket)
{
    made_up_log *log = (made_up_log *)self;
    if (log->is_broken)
        return WEIR_ERR_PEER_LOST;
    log->n_records++;
    if (!log->is_slow) {
        log->reader.apply(log->reader.context, record, log->now_ms, ticket);
        return WEIR_OK;
    }
    made_up_item item = { .is_record = true,
                          .bytes = malloc(record->n_bytes + 1),
                          .n_bytes = record->n_bytes,
                          .salt = record->salt,
                          .ticket = ticket };
    memcpy(item.bytes, record->bytes, record->n_bytes);
    strncpy(item.method, record->method, sizeof(item.method) - 1);
    if (record->trace_id != NULL)
        strncpy(item.trace_id, record->trace_id, sizeof(item.trace_id) - 1);
    return made_up_keep(log, &item);
}

static inline weir_status
made_up_catch_up(weir_directory_log *self, uint64_t ticket,
                 void (*then)(void *context, uint64_t ticket, uint64_t now_ms), void *context)
{
    made_up_log *log = (made_up_log *)self;
    if (log->is_broken)
        return WEIR_ERR_PEER_LOST;
    if (!log->is_slow) {
        then(context, ticket, log->now_ms);
        return WEIR_OK;
    }
    const made_up_item item = { .ticket = ticket, .then = then, .context = context };
    return made_up_keep(log, &item);
}

static inline uint64_t made_up_now_ms(const weir_directory_log *self)
{
    return ((const made_up_log *)self)->now_ms;
}

static inline unsigned made_up_tick(weir_directory_log *self)
{
    (void)self;
    return 60000;
}

static inline const char *made_up_trouble(const weir_directory_log *self)
{
    return ((const made_up_log *)self)->is_broken ? "broken" : NULL;
}

static inline void made_up_close(weir_directory_log *self)
{
    made_up_log *log = (made_up_log *)self;
    for (unsigned i = 0; i < log->n_items; i++)
        free(log->items[i].bytes);
    free(log);
}

/* What was kept, in its order; what that makes anew is kept in its turn. */
static inline void made_up_log_deliver(made_up_log *log)
{
    made_up_item items[MADE_UP_ITEMS];
    unsigned n = log->n_items;
    memcpy(items, log->items, n * sizeof(items[0]));
    log->n_items = 0;
    for (unsigned i = 0; i < n; i++) {
        const weir_log_record record = { .method = items[i].method,
                                         .bytes = items[i].bytes,
                                         .n_bytes = items[i].n_bytes,
                                         .salt = items[i].salt,
                                         .trace_id = items[i].trace_id };
        if (items[i].is_record)
            log->reader.apply(log->reader.context, &record, log->now_ms, items[i].ticket);
        else
            items[i].then(items[i].context, items[i].ticket, log->now_ms);
        free(items[i].bytes);
    }
}

static inline weir_status made_up_log_open(const weir_log_reader *reader, made_up_log **out)
{
    static const weir_log_ops ops = { made_up_append, made_up_catch_up, made_up_now_ms,
                                      made_up_tick,   made_up_trouble,  made_up_close };
    made_up_log *log = calloc(1, sizeof(*log));
    if (log == NULL)
        return WEIR_ERR_NO_MEMORY;
    log->log.ops = &ops;
    log->reader = *reader;
    log->now_ms = 1700000000000;
    weir_status status = reader->load(reader->context, NULL, 0);
    if (status != WEIR_OK) {
        free(log);
        return status;
    }
    *out = log;
    return WEIR_OK;
}

#endif
