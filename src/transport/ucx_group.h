/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_group.h - the objects of a broadcast group of transport ucx.
 *
 * A group has a thread, connections and UCX workers of its own: what it does moves on while its
 * caller converts or sleeps, and once the thread has ended nothing touches its caller's memory.
 * Ranks meet over TCP at rank 0 (ucx_meet.c, ucx_dial.c, ucx_link.c); those connections stay open
 * and tell at once of a rank that is gone. In the chain each rank reads from the one before it, by
 * UCX (ucx_chain.c, ucx_feed.c, ucx_kept.c).
 */
#ifndef WEIR_TRANSPORT_UCX_GROUP_H
#define WEIR_TRANSPORT_UCX_GROUP_H

#include "base/clock.h"
#include "base/digest.h"
#include "base/error.h"
#include "transport/ucx.h"

#define WEIR_UCX_AHEAD 8u      /* broadcasts of a group that are queued at once */
#define WEIR_UCX_FEW_PARTS 16u /* of a broadcast, without a list of their own */
#define WEIR_UCX_KEPT 64u      /* regions, while no more are needed at once */
#define WEIR_UCX_STRANGERS 16u /* connections that have not said yet whose they are */
#define WEIR_UCX_RANKS 4096u

typedef struct ucx_link {
    int fd; /* -1: none */
    weir_deadline until;
    size_t n_in, room;
    uint8_t *in;
} ucx_link;

/* ---- the chain -------------------------------------------------------------------------------*/

typedef struct ucx_cursor {
    size_t part;
    uint64_t offset;  /* within it */
    uint64_t n_bytes; /* before it, of all parts */
} ucx_cursor;

/* One broadcast. Its caller fills in the upper half, and the group's thread has the lower one. */
typedef struct ucx_cast {
    weir_ucx_head head;
    size_t n_parts;
    weir_group_part *parts; /* `few`, or `many` */
    weir_group_part few[WEIR_UCX_FEW_PARTS];
    weir_group_part *many; /* grown, and kept for the next */
    size_t many_parts;

    bool begun;          /* its head has come, and agrees */
    uint64_t may_read;   /* so many bytes are there at the rank before */
    ucx_cursor in;       /* what is here */
    bool head_told;      /* to the rank after */
    ucx_cursor told;     /* of what is here */
    size_t n_parts_told; /* where they are */
} ucx_cast;

/* Memory of broadcasts that the rank after may read, and memory of the rank before: registered
 * once, and kept for the broadcasts that follow. */
typedef struct ucx_kept_region {
    weir_region *region;
    uint8_t *data;
    uint64_t n_bytes;
    uint64_t last_cast; /* the last broadcast that it was used for */
} ucx_kept_region;
typedef struct ucx_kept_remote {
    weir_remote_region *remote;
    uint8_t *key;
    size_t key_bytes;
    uint64_t last_cast;
} ucx_kept_remote;
typedef struct ucx_kept {
    ucx_kept_region *regions;
    ucx_kept_remote *remotes;
    size_t n_regions, n_remotes, region_room, remote_room;
} ucx_kept;

/* ucx_kept.c */
/* A region with all of the part, for broadcast `number`; those before `n_taken` need theirs no
 * more. */
weir_status weir_ucx_keep_region(ucx_kept *kept, weir_transport *data, const weir_group_part *part,
                                 uint64_t number, uint64_t n_taken, ucx_kept_region *out);
weir_status weir_ucx_keep_remote(ucx_kept *kept, weir_peer *before, const void *key,
                                 size_t key_bytes, uint64_t number, weir_remote_region **out);
void weir_ucx_kept_forget(ucx_kept *kept);  /* what is read */
void weir_ucx_kept_release(ucx_kept *kept); /* what others read */

/* What a neighbour is to be told, as far as its connection has not taken it. */
typedef struct ucx_outbox {
    uint8_t *data;
    size_t n_bytes, n_sent, room;
} ucx_outbox;

/* How bytes come to a rank from the one before: read by UCX where their owner takes no part in it,
 * else sent over the connection of the two. */
typedef enum ucx_way { UCX_WAY_UNKNOWN, UCX_WAY_ASKED, UCX_WAY_READ, UCX_WAY_SENT } ucx_way;

typedef struct ucx_chain {
    uint32_t rank, n_ranks;
    const char *who;
    ucx_transport *of;        /* in whose context it reads, and is read */
    ucx_link *before, *after; /* NULL: not connected */
    const ucx_link *root;     /* to rank 0, where it is another: what it says now is the end */
    int abort_fd;             /* readable once this rank's caller aborts; -1: none */
    ucx_outbox to_before, to_after;
    weir_key_buffer message;

    ucx_way from_before, to_the_after;
    weir_transport *data; /* NULL until something is read here, or offered to be */
    ucx_kept kept;
    weir_peer *peer; /* the rank before */
    weir_transfer *transfer;
    weir_copy copy;             /* what it reads */
    weir_remote_region *source; /* the part at hand, there */
    uint64_t source_offset;     /* of the broadcast's byte source_begin */
    uint64_t source_begin, source_end;
    bool source_follows;  /* its offset was told, its key is next */
    uint64_t n_announced; /* bytes that were announced and are not yet sent */

    uint64_t n_offered; /* broadcasts that the rank after has heard all of */
    uint64_t n_taken;   /* and that it has read */

    weir_status failure; /* the ranks disagree; its line is this thread's last */
    bool broken;         /* harms only what still needs the one that is gone */
    uint32_t broken_rank;
    char broken_why[128];
} ucx_chain;

/* With root, number and parts set. */
void weir_ucx_cast_begin(ucx_cast *cast);
/* One step each: true when it may be worth another. Broadcasts are received in their order, and
 * offered in their order. */
bool weir_ucx_cast_receive(ucx_chain *chain, ucx_cast *cast);
bool weir_ucx_cast_received(const ucx_cast *cast);
bool weir_ucx_cast_offer(ucx_chain *chain, ucx_cast *cast);
bool weir_ucx_cast_offered(const ucx_chain *chain, const ucx_cast *cast);
/* Whether the rank after has read it whole. */
bool weir_ucx_cast_taken(ucx_chain *chain, const ucx_cast *cast);
/* Sends what there is to be told. */
void weir_ucx_chain_flush(ucx_chain *chain);
/* Ends what is being read: nothing is written to any more. Bounded. */
void weir_ucx_chain_stop(ucx_chain *chain);
/* And nothing is read from any more. */
void weir_ucx_chain_close(ucx_chain *chain);

/* ucx_feed.c */
uint32_t weir_ucx_rank_before(const ucx_chain *chain);
uint32_t weir_ucx_rank_after(const ucx_chain *chain);
void weir_ucx_note_broken(ucx_chain *chain, uint32_t rank, const char *why);
/* Of the rank before: what it tells of this broadcast, until there is something to read or nothing
 * more to hear. */
void weir_ucx_hear_before(ucx_chain *chain, ucx_cast *cast);
void weir_ucx_hear_after(ucx_chain *chain);
/* Asks the rank after which way it wants: true once it has said so. */
bool weir_ucx_agree_on_way(ucx_chain *chain);
bool weir_ucx_tell_head(ucx_chain *chain, const weir_ucx_head *head);
bool weir_ucx_tell_key(ucx_chain *chain, weir_region *region, uint64_t offset);
bool weir_ucx_tell_step(ucx_chain *chain, weir_ucx_step_kind kind, uint64_t value);

/* ---- connections -----------------------------------------------------------------------------*/

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
/* Whether what has come holds one, or nonsense. */
bool weir_ucx_link_has_message(const ucx_link *link);
void weir_ucx_link_heard(ucx_link *link, size_t n_bytes); /* lets it go */
/* Whether its peer has let go of it, whatever is still to be read. */
bool weir_ucx_link_has_ended(const ucx_link *link);
/* Reads and forgets what has come; closes a link that has ended. True while it has not. */
bool weir_ucx_link_drain(ucx_link *link);

/* On the way to somebody: his addresses in turn. */
typedef struct ucx_dial {
    weir_ucx_group_key to;
    ucx_link *link; /* stands once it is neither -1 nor `connecting` */
    unsigned next_address;
    bool connecting;
    bool unanswered; /* it stands, but may be anybody's: given up after link->until */
} ucx_dial;

typedef enum ucx_dialled {
    UCX_DIAL_NOT_YET,
    UCX_DIAL_BEGUN,
    UCX_DIAL_ALL_TRIED,
    UCX_DIAL_NOWHERE
} ucx_dialled;

uint64_t weir_ucx_place(void); /* of this process, as keys say it */
/* Begins to connect to the next address. */
ucx_dialled weir_ucx_dial_next(ucx_dial *dial);
/* Something has come of it: whether the connection stands. */
bool weir_ucx_dial_stands(ucx_dial *dial);
/* What stands must be answered by then. */
void weir_ucx_dial_await_answer(ucx_dial *dial);
/* Lets go of what has taken too long. */
void weir_ucx_dial_check_time(ucx_dial *dial);
void weir_ucx_dial_drop(ucx_dial *dial);

/* ---- the group -------------------------------------------------------------------------------*/

typedef struct ucx_member { /* what rank 0 knows of another */
    ucx_link link;
    weir_ucx_group_key where;
    uint64_t n_done;
    uint32_t process;
    int process_fd; /* readable when it has ended; -1: on another host */
    bool linked, left;
} ucx_member;

typedef struct ucx_meet {
    weir_ucx_group_key key; /* of rank 0 */
    weir_ucx_group_key own; /* the same nonce, and where this rank listens */
    int poll_fd, wake_fd;
    int abort_fd; /* as wake_fd, and stays readable */
    int listener;
    ucx_member *members; /* rank 0: one per rank, its own unused; else one: rank 0 */
    uint32_t n_members;
    ucx_link *strangers;
    uint32_t n_strangers;
    ucx_link before, after;
    ucx_dial to_root, to_after;
    bool greeted;                     /* rank 0, over the connection that stands */
    bool was_greeted, lately_greeted; /* over one before; and since its first address was tried */
    bool linked;
    weir_key_buffer out;
} ucx_meet;

typedef enum ucx_phase {
    UCX_JOINING, /* ranks are missing */
    UCX_LINKING, /* all are known, and connect to the one after them */
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
    uint64_t n_received, n_sent; /* broadcasts that are here, and that the next rank has */
    weir_deadline broken_until;  /* 0: the chain is whole */
    bool left;                   /* left_rank went in peace */
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
/* In the caller's thread. */
weir_status weir_ucx_meet_open(ucx_group *group);
void weir_ucx_meet_close(ucx_meet *meet);
void weir_ucx_meet_close_door(ucx_meet *meet); /* to guests */
/* Sleeps for sleep_ms (-1: until something happens), and does what there is to do. */
weir_status weir_ucx_meet_turn(ucx_group *group, int sleep_ms);
/* Both neighbours may be there: if so, rank 0 is told. */
weir_status weir_ucx_check_linked(ucx_group *group);
/* Something has come of dialling rank 0. */
weir_status weir_ucx_root_stands(ucx_group *group);
/* The connection to it is none: another is made, to its next address. */
void weir_ucx_drop_root(ucx_group *group);

/* What is ready, in the upper half of an event's data; which one of them, in the lower. */
typedef enum ucx_source {
    UCX_SOURCE_WAKE,
    UCX_SOURCE_LISTENER,
    UCX_SOURCE_STRANGER,
    UCX_SOURCE_MEMBER,
    UCX_SOURCE_PROCESS,
    UCX_SOURCE_BEFORE,
    UCX_SOURCE_AFTER
} ucx_source;
bool weir_ucx_watch(const ucx_meet *meet, int fd, ucx_source source, uint32_t index,
                    uint32_t events);
/* One that was watched as something else. */
bool weir_ucx_watch_as(const ucx_meet *meet, int fd, ucx_source source, uint32_t index,
                       uint32_t events);
weir_status weir_ucx_fail_watch(const ucx_group *group);

/* ucx_guest.c */
weir_status weir_ucx_accept_stranger(ucx_group *group);
weir_status weir_ucx_hear_stranger(ucx_group *group, uint32_t index);

/* ucx_word.c */
bool weir_ucx_say(ucx_meet *meet, const ucx_link *link, const weir_ucx_word *word);
weir_status weir_ucx_say_hello(ucx_group *group, weir_ucx_purpose purpose, const ucx_link *link,
                               bool *out_said);
void weir_ucx_set_reason(weir_ucx_word *word, const char *reason);
/* Records that a rank is gone, and how. */
weir_status weir_ucx_fail_gone(const ucx_group *group, uint32_t rank, const char *how);
weir_status weir_ucx_watch_process(ucx_group *group, uint32_t rank, const char *host,
                                   uint32_t process);
weir_status weir_ucx_process_ended(ucx_group *group, uint32_t rank);
/* Rank 0: lets all begin once all are linked. */
weir_status weir_ucx_all_linked(ucx_group *group);
/* Here too: nobody else is expected. */
void weir_ucx_all_joined(ucx_group *group);
/* All that has come from a rank; of others than rank 0, from that alone. */
weir_status weir_ucx_hear_member(ucx_group *group, uint32_t rank);
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
void weir_ucx_group_leave(weir_group *group, bool abort);
void weir_ucx_group_close(weir_group *group, bool abort);
weir_status weir_ucx_group_progress(weir_group *group, uint64_t *out_n_done);

#endif
