/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream_ranges.c - the memory that readers over TCP may have sent to them: sealed regions.
 *
 * Regions come and go in the thread of the transport's caller while the owner's thread sends from
 * them. That one looks at most once per request while nothing is removed, and holds what it sends
 * from for one send that does not block; whoever removes a region waits for that send, not for the
 * request.
 */
#include "base/alloc.h"
#include "transport/ucx_stream.h"

void weir_stream_ranges_open(ucx_ranges *ranges)
{
    *ranges = (ucx_ranges){ .n_removed = 1 }; /* 0 is nobody's last look */
    pthread_mutex_init(&ranges->lock, NULL);
    pthread_cond_init(&ranges->let_go, NULL);
}

void weir_stream_ranges_close(ucx_ranges *ranges)
{
    pthread_cond_destroy(&ranges->let_go);
    pthread_mutex_destroy(&ranges->lock);
    weir_free(ranges->ranges);
}

static bool make_room(ucx_ranges *ranges)
{
    if (ranges->n_ranges < ranges->room)
        return true;
    size_t room = ranges->room > 0 ? 2 * ranges->room : 16;
    ucx_range *grown = weir_realloc(ranges->ranges, room * sizeof(*grown));
    if (grown == NULL)
        return false;
    ranges->ranges = grown;
    ranges->room = room;
    return true;
}

weir_status weir_stream_ranges_add(ucx_ranges *ranges, ucx_range range)
{
    if (range.n_bytes == 0)
        return WEIR_OK;
    pthread_mutex_lock(&ranges->lock);
    bool fits = make_room(ranges);
    if (fits)
        ranges->ranges[ranges->n_ranges++] = range;
    pthread_mutex_unlock(&ranges->lock);
    return fits ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* The same memory may be exposed twice: one of the two goes. */
static void take_out(ucx_ranges *ranges, ucx_range range)
{
    for (size_t i = 0; i < ranges->n_ranges; i++) {
        const ucx_range *one = &ranges->ranges[i];
        if (one->address == range.address && one->n_bytes == range.n_bytes) {
            ranges->ranges[i] = ranges->ranges[--ranges->n_ranges];
            return;
        }
    }
}

void weir_stream_ranges_remove(ucx_ranges *ranges, ucx_range range)
{
    pthread_mutex_lock(&ranges->lock);
    take_out(ranges, range);
    ranges->n_removed++;
    uint64_t n_holds = ranges->n_holds;
    while (ranges->held && ranges->n_holds == n_holds)
        pthread_cond_wait(&ranges->let_go, &ranges->lock);
    pthread_mutex_unlock(&ranges->lock);
}

static bool is_within(const ucx_range *one, const ucx_range *range)
{
    return range->address >= one->address && range->n_bytes <= one->n_bytes &&
           range->address - one->address <= one->n_bytes - range->n_bytes;
}

/* Ranges of a request mostly lie in the same region as the one before. */
static bool find(const ucx_ranges *ranges, const ucx_range *range, size_t *hint)
{
    if (*hint < ranges->n_ranges && is_within(&ranges->ranges[*hint], range))
        return true;
    for (*hint = 0; *hint < ranges->n_ranges; (*hint)++)
        if (is_within(&ranges->ranges[*hint], range))
            return true;
    return false;
}

static bool find_all(const ucx_ranges *ranges, const uint8_t *request, uint32_t n_ranges,
                     ucx_range *out_missing)
{
    size_t hint = 0;
    for (uint32_t i = 0; i < n_ranges; i++) {
        *out_missing = weir_stream_range_decode(request + WEIR_STREAM_HEAD_BYTES +
                                                i * WEIR_STREAM_RANGE_BYTES);
        if (!find(ranges, out_missing, &hint))
            return false;
    }
    return true;
}

bool weir_stream_ranges_hold(ucx_ranges *ranges, const uint8_t *request, uint32_t n_ranges,
                             uint64_t *seen, ucx_range *out_missing)
{
    pthread_mutex_lock(&ranges->lock);
    bool found = *seen == ranges->n_removed || find_all(ranges, request, n_ranges, out_missing);
    if (found) {
        *seen = ranges->n_removed;
        ranges->held = true;
        ranges->n_holds++;
    }
    pthread_mutex_unlock(&ranges->lock);
    return found;
}

void weir_stream_ranges_let_go(ucx_ranges *ranges)
{
    pthread_mutex_lock(&ranges->lock);
    ranges->held = false;
    pthread_cond_broadcast(&ranges->let_go);
    pthread_mutex_unlock(&ranges->lock);
}
