/* SPDX-License-Identifier: Apache-2.0 */
/* waits.h - calls that are answered later: kept by ticket, by model and by when their time is up.
 *
 * Holds requests and nothing else: what a wait is for, and whether it is over, is its owner's to
 * say. A wait costs nothing until its model changes or its time is up.
 *
 * Threads    one at a time.
 * Ownership  a wait and the copy of its request live until it is dropped; one that is dropped while
 *            waits are walked lives until the walk is over.
 * Errors     ERR_NO_MEMORY, also when there are as many as there may be.
 */
#ifndef WEIR_DIRECTORY_WAITS_H
#define WEIR_DIRECTORY_WAITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rpc/rpc_heap.h"
#include "weir/status.h"

#define WEIR_WAITS_MOST 16384u
#define WEIR_WAITS_MOST_BYTES ((size_t)256 << 20)

typedef struct weir_wait_group weir_wait_group;
typedef struct weir_wait {
    uint64_t ticket;
    const void *method; /* the owner's: what is waited for */
    uint64_t due_ns;    /* by weir_now_ns(); UINT64_MAX: its owner ends it otherwise */
    bool is_caught_up;  /* the owner's: everything that was there before it has been read */
    bool is_taking;     /* the owner's: what it waited for is there, and asked for */
    bool is_dropped;    /* while waits are walked */
    size_t n_bytes;
    const unsigned char *bytes; /* the request */

    weir_wait_group *group;
    struct weir_wait *next, *previous, *next_of_bucket;
    size_t heap_at; /* SIZE_MAX: not in it */
} weir_wait;

typedef struct weir_waits {
    weir_rpc_heap memory; /* so that a steady flow takes none */
    weir_wait **buckets;
    weir_wait **heap; /* by due_ns */
    size_t n_heap, n_heap_room;
    weir_wait_group *groups;
    weir_wait *dropped; /* to be freed behind a walk */
    size_t n_waits, n_bytes;
    unsigned n_walks;
} weir_waits;

void weir_waits_init(weir_waits *waits);
void weir_waits_close(weir_waits *waits);

/* Copies the request. Waits of one model stand in line; model NULL: it stands in none. */
weir_status weir_waits_park(weir_waits *waits, const weir_wait *request, const char *model,
                            weir_wait **out);
weir_wait *weir_waits_find(const weir_waits *waits, uint64_t ticket); /* NULL: there is none */
void weir_waits_drop(weir_waits *waits, weir_wait *wait);

/* For each model whose revision is not what it was when its waits were last looked at (never, for a
 * model that has just got its first): calls `look` for its waits, the oldest first. */
void weir_waits_look(weir_waits *waits, uint64_t (*revision)(void *context, const char *model),
                     void (*look)(void *context, weir_wait *wait), void *context);

/* Its time is up at due_ns, if that is earlier. */
void weir_waits_hasten(weir_waits *waits, weir_wait *wait, uint64_t due_ns);

uint64_t weir_waits_next_due(const weir_waits *waits); /* UINT64_MAX: none */
/* The one whose time has been up for longest, NULL when there is none; it is given out once. */
weir_wait *weir_waits_take_due(weir_waits *waits, uint64_t now_ns);

#endif
