/* SPDX-License-Identifier: Apache-2.0 */
/* progress.c - a hash by worker id, and a list by age. */
#include "directory/progress.h"

#include <string.h>

#include "base/alloc.h"

#define N_BUCKETS 4096u

struct weir_progress_item {
    weir_progress_entry entry; /* its strings follow the struct */
    weir_progress_item *next_of_bucket;
    weir_progress_item *older, *newer;
};

void weir_progress_init(weir_progress *progress)
{
    memset(progress, 0, sizeof(*progress));
    weir_rpc_heap_init(&progress->memory);
}

static weir_progress_item **find(const weir_progress *progress, const char *worker_id)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *at = worker_id; *at != '\0'; at++)
        hash = (hash ^ (unsigned char)*at) * 0x100000001b3u;
    weir_progress_item **at = &progress->buckets[(hash ^ hash >> 32) % N_BUCKETS];
    while (*at != NULL && strcmp((*at)->entry.worker_id, worker_id) != 0)
        at = &(*at)->next_of_bucket;
    return at;
}

static void drop(weir_progress *progress, weir_progress_item **at)
{
    weir_progress_item *item = *at;
    *at = item->next_of_bucket;
    *(item->newer != NULL ? &item->newer->older : &progress->newest) = item->older;
    *(item->older != NULL ? &item->older->newer : &progress->oldest) = item->newer;
    progress->n--;
    weir_rpc_heap_free(&progress->memory, item);
}

static const char *put_text(char **at, const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = memcpy(*at, text, n);
    *at += n;
    return copy;
}

static weir_progress_item *make_item(weir_progress *progress, const weir_progress_entry *entry)
{
    size_t n_text = strlen(entry->worker_id) + strlen(entry->model) + strlen(entry->stop) +
                    strlen(entry->slowest_from) + 4;
    weir_progress_item *item = weir_rpc_heap_alloc(&progress->memory, sizeof(*item) + n_text);
    if (item == NULL)
        return NULL;
    char *at = (char *)(item + 1);
    memset(item, 0, sizeof(*item));
    item->entry = *entry;
    item->entry.worker_id = put_text(&at, entry->worker_id);
    item->entry.model = put_text(&at, entry->model);
    item->entry.stop = put_text(&at, entry->stop);
    item->entry.slowest_from = put_text(&at, entry->slowest_from);
    return item;
}

weir_status weir_progress_put(weir_progress *progress, const weir_progress_entry *entry)
{
    if (progress->buckets == NULL)
        progress->buckets = weir_alloc_zeroed(N_BUCKETS, sizeof(*progress->buckets));
    weir_progress_item *item = progress->buckets != NULL ? make_item(progress, entry) : NULL;
    if (item == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_progress_forget(progress, entry->worker_id);
    if (progress->n >= WEIR_PROGRESS_MOST)
        drop(progress, find(progress, progress->oldest->entry.worker_id));
    weir_progress_item **at = find(progress, entry->worker_id);
    *at = item;
    item->older = progress->newest;
    *(item->older != NULL ? &item->older->newer : &progress->oldest) = item;
    progress->newest = item;
    progress->n++;
    return WEIR_OK;
}

void weir_progress_forget(weir_progress *progress, const char *worker_id)
{
    if (progress->buckets == NULL)
        return;
    weir_progress_item **at = find(progress, worker_id);
    if (*at != NULL)
        drop(progress, at);
}

const weir_progress_entry *weir_progress_find(const weir_progress *progress, const char *worker_id)
{
    const weir_progress_item *item = progress->buckets != NULL ? *find(progress, worker_id) : NULL;
    return item != NULL ? &item->entry : NULL;
}

void weir_progress_each(const weir_progress *progress,
                        bool (*visit)(void *context, const weir_progress_entry *entry),
                        void *context)
{
    for (const weir_progress_item *item = progress->newest; item != NULL; item = item->older) {
        if (!visit(context, &item->entry))
            return;
    }
}

void weir_progress_close(weir_progress *progress)
{
    while (progress->oldest != NULL)
        drop(progress, find(progress, progress->oldest->entry.worker_id));
    weir_free(progress->buckets);
    weir_rpc_heap_close(&progress->memory);
    memset(progress, 0, sizeof(*progress));
}
