/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_group.h - the objects of a broadcast group of transport ucx.
 *
 * A group has a thread and a UCX worker of its own: what it does moves on while its caller converts
 * or sleeps, and destroying the worker ends for sure whatever could still write into its caller's
 * memory. Ranks meet over TCP at rank 0 (ucx_meet.c, ucx_link.c); those connections stay open and
 * tell at once of a rank that is gone. The bytes go from rank to rank in a chain (ucx_chain.c).
 */
#ifndef WEIR_TRANSPORT_UCX_GROUP_H
#define WEIR_TRANSPORT_UCX_GROUP_H

#include "base/clock.h"
#include "base/error.h"
#include "transport/ucx.h"

#define WEIR_UCX_AHEAD 8u      /* broadcasts of a group that are queued at once */
#define WEIR_UCX_CHUNKS 8u     /* pieces of them that are under way at once */
#define WEIR_UCX_FEW_PARTS 16u /* of a broadcast, without a list of their own */
#define WEIR_UCX_STRANGERS 16u /* connections to rank 0 that have not said yet who they are */
#define WEIR_UCX_RANKS 4096u

/* ---- the chain -------------------------------------------------------------------------------*/

typedef struct ucx_chain ucx_chain;

/* One broadcast. Its caller fills in the upper half, and the chain's thread has the lower one. */
typedef struct ucx_cast {
    uint32_t root;
    uint64_t number; /* within the group, from 0; tells its messages apart */
    uint64_t n_chunks;
    size_t n_parts;
    weir_group_part *parts; /* `few`, or `many` */
    weir_group_part few[WEIR_UCX_FEW_PARTS];
    weir_group_part *many; /* grown, and kept for the next */
    size_t many_parts;

    uint64_t n_posted; /* chunks */
    size_t next_part;
    uint64_t next_offset;
    unsigned n_under_way;
} ucx_cast;

typedef struct ucx_chunk {
    ucx_chain *chain;
    ucx_cast *cast;
    struct ucx_chunk *next; /* of those that are free, or that wait to be passed on */
    uint8_t *data;
    uint64_t n_bytes, tag;
    void *request; /* UCX's, while it has it */
    bool receiving;
} ucx_chunk;

struct ucx_chain {
    uint32_t rank, n_ranks;
    uint16_t group; /* in every tag */
    const char *who;
    ucp_worker_h worker;
    int ucx_fd;
    ucp_ep_h before, after; /* one and the same in a group of two */
    unsigned n_under_way;
    ucx_chunk *free_chunk;
    ucx_chunk *received, **received_end; /* to be passed on, in this order */
    ucx_chunk chunks[WEIR_UCX_CHUNKS];
    weir_status failure; /* of a broadcast; OK while there is none */
    weir_error_line why;
    ucs_status_t broken; /* why an endpoint went down; harms only what still needs it */
    uint32_t broken_rank;
    bool stuck; /* a cancelled piece has not ended: the worker is never progressed again */
};

weir_status weir_ucx_chain_open(ucx_transport *ucx, ucx_chain *chain);
/* Gives up what is under way and closes the worker. */
void weir_ucx_chain_close(ucx_chain *chain);
/* For one who goes in peace: closes the endpoints once what was sent has been delivered. */
void weir_ucx_chain_flush(ucx_chain *chain, unsigned ms);
weir_status weir_ucx_chain_link(ucx_chain *chain, const weir_ucx_start *start);
/* One turn of UCX; true when it had something to do. */
bool weir_ucx_chain_progress(ucx_chain *chain);
/* False when there is something to do: no time to sleep on ucx_fd. */
bool weir_ucx_chain_arm(ucx_chain *chain);
/* Cuts a broadcast into chunks, whatever its rank. ERR_INVALID for more than a tag can number. */
weir_status weir_ucx_cast_begin(ucx_cast *cast, const char *who);
/* Begins as many of its chunks as may be; true when it has begun any. */
bool weir_ucx_cast_advance(ucx_chain *chain, ucx_cast *cast);
/* Passes on what has come, when nothing is left to begin. */
bool weir_ucx_chain_pass_on(ucx_chain *chain);
bool weir_ucx_cast_begun(const ucx_cast *cast); /* all of its chunks */
bool weir_ucx_cast_ended(const ucx_cast *cast);

/* ---- connections -----------------------------------------------------------------------------*/

typedef struct ucx_link {
    int fd; /* -1: none */
    weir_deadline until;
    size_t n_in;
    uint8_t *in; /* WEIR_UCX_MESSAGE_BYTES */
} ucx_link;

typedef enum ucx_heard {
    UCX_HEARD_NOTHING,
    UCX_HEARD_MESSAGE,
    UCX_HEARD_NONSENSE,
    UCX_HEARD_END
} ucx_heard;

/* A listener at all addresses of this host. */
weir_status weir_ucx_listen(int *out_fd, uint16_t *out_port);
/* Where other hosts may reach this one: as many as a key has room for. */
void weir_ucx_own_addresses(weir_ucx_group_key *key);
/* -1: nobody waits. */
int weir_ucx_accept(int listener);
/* -1: refused at once; else writable once it stands or has failed. */
int weir_ucx_connect_begin(const weir_ip_address *address, uint16_t port);
bool weir_ucx_connect_stands(int fd);
void weir_ucx_link_close(ucx_link *link);
/* False when it could not be sent whole: its peer has gone, or does not listen. */
bool weir_ucx_link_send(const ucx_link *link, const weir_key_buffer *message);
/* The next message is at link->in. */
ucx_heard weir_ucx_link_hear(ucx_link *link, char *out_kind, size_t *out_n_bytes);
void weir_ucx_link_heard(ucx_link *link, size_t n_bytes); /* lets it go */
/* Reads and forgets; closes a link that has ended. True while it has not. */
bool weir_ucx_link_drain(ucx_link *link);

/* ---- the group -------------------------------------------------------------------------------*/

typedef struct ucx_member { /* what rank 0 knows of another */
    ucx_link link;
    uint8_t *worker; /* of [0]: this process's own, whatever its rank */
    size_t worker_bytes;
    uint64_t n_done;
    uint32_t process;
    int process_fd; /* readable when it has ended; -1: on another host */
    bool linked, left;
} ucx_member;

typedef struct ucx_meet {
    weir_ucx_group_key key;
    int poll_fd, wake_fd;
    int listener;        /* rank 0 */
    ucx_member *members; /* rank 0: one per rank, its own unused; else one: rank 0 */
    uint32_t n_members;
    ucx_link *strangers; /* rank 0 */
    uint32_t n_strangers;
    unsigned next_address;
    bool connecting, greeted, was_greeted;
    weir_key_buffer out;
} ucx_meet;

typedef enum ucx_phase {
    UCX_JOINING, /* ranks are missing */
    UCX_LINKING, /* all are known; an empty broadcast goes down the chain */
    UCX_JOINED,
    UCX_FAILED
} ucx_phase;

typedef enum ucx_stop { UCX_STAY, UCX_FINISH, UCX_ABORT } ucx_stop;

typedef struct ucx_group {
    weir_group base;
    uint32_t rank, n_ranks;
    unsigned timeout_ms;
    weir_deadline deadline; /* for joining */
    char *who;
    pthread_t thread;

    /* The thread's. */
    ucx_chain chain;
    ucx_meet meet;
    ucx_cast probe;
    bool probed;
    uint64_t n_begun;           /* broadcasts whose chunks are all posted */
    weir_deadline broken_until; /* 0: the chain is whole */
    bool left;                  /* left_rank went in peace */
    uint32_t left_rank;
    bool over; /* because of that, with nothing left to do anywhere */

    pthread_mutex_t lock; /* protects what follows */
    ucx_phase phase;
    bool in_peace; /* failed, but all that was queued is done */
    ucx_stop stop;
    weir_status failure;
    weir_error_line why;
    uint64_t n_queued, n_done;
    ucx_cast casts[WEIR_UCX_AHEAD]; /* one is the caller's until it is queued, then the thread's */
} ucx_group;

/* ucx_meet.c */
uint64_t weir_ucx_place(void); /* of this process, as keys say it */
/* In the caller's thread: everything but what needs the worker. */
weir_status weir_ucx_meet_open(ucx_group *group);
/* With the chain open. */
weir_status weir_ucx_meet_begin(ucx_group *group);
void weir_ucx_meet_close(ucx_meet *meet);
/* Sleeps for sleep_ms (-1: until something happens), and does what there is to do. */
weir_status weir_ucx_meet_turn(ucx_group *group, int sleep_ms);
/* The probe has come through here. */
weir_status weir_ucx_meet_linked(ucx_group *group);
/* Tells whom it concerns that so many have ended here. */
void weir_ucx_meet_done(ucx_group *group, uint64_t n_done);
/* Rank 0: whether all others have reported as many. */
bool weir_ucx_meet_all_done(const ucx_group *group, uint64_t n_done);
/* Tells the others that this rank goes, and why; waits a little for them to hear it. */
void weir_ucx_meet_leave(ucx_group *group, weir_ucx_word_kind kind, weir_status status,
                         const char *reason);

/* ucx_group.c */
void weir_ucx_keys_close(ucx_transport *ucx);
ucx_phase weir_ucx_group_phase(ucx_group *group);
void weir_ucx_group_enter(ucx_group *group, ucx_phase phase);
weir_status weir_ucx_group_make_key(weir_transport *transport, void *out_key);
weir_status weir_ucx_group_open(weir_transport *transport, const weir_group_options *options,
                                weir_group **out);
weir_status weir_ucx_group_test(weir_group *group);
weir_status weir_ucx_group_broadcast(weir_group *group, uint32_t root, const weir_group_part *parts,
                                     size_t n_parts, void *stream);
void weir_ucx_group_close(weir_group *group, bool abort);
weir_status weir_ucx_group_progress(weir_group *group, uint64_t *out_n_done);

#endif
