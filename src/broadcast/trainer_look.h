/* SPDX-License-Identifier: Apache-2.0 */
/* trainer_look.h - one look at the directory where a trainer is to be: whether it is there, and
 * which version is the newest that can be had.
 */
#ifndef WEIR_BROADCAST_TRAINER_LOOK_H
#define WEIR_BROADCAST_TRAINER_LOOK_H

#include "directory/client.h"

/* What is looked for. */
typedef struct weir_trainer_wish {
    const char *model, *run; /* "": of all, where it may be */
    bool holds; /* the asker has a version of the run, and asks whether it still stands */
    uint64_t held;
    const char *held_uid;
    bool wants; /* one version, and asks whether that can come yet */
    uint64_t wanted;
} weir_trainer_wish;

typedef struct weir_trainer_sight {
    bool is_told;       /* false: a directory that tells no such thing (ModelExpress') */
    bool has_trainer;   /* of the model */
    bool says_run;      /* the directory is that trainer's own, and says: */
    char run[256];      /* its run */
    uint32_t n_workers; /* to how many inference workers its versions go; 0: not said */
    char others[256];   /* models that have one, "a, b"; "": none */
    bool has_newest;    /* READY, of the model and run */
    uint64_t newest;
    bool is_made_anew; /* the version that is held, by a trainer that was started again */
    bool is_aborted;   /* the version that is wanted, and no other attempt at it has begun */
    uint64_t revision; /* of what it said */
} weir_trainer_sight;

/* As weir_trainer_ask(), by who holds nothing. */
weir_status weir_trainer_look(weir_directory_client *client, const char *model, const char *run,
                              uint64_t after_revision, unsigned timeout_ms,
                              weir_trainer_sight *out);
/* Waits, at most timeout_ms, for something newer than `after_revision` (0: looks at once). Errors
 * as client.h. */
weir_status weir_trainer_ask(weir_directory_client *client, const weir_trainer_wish *wish,
                             uint64_t after_revision, unsigned timeout_ms, weir_trainer_sight *out);
/* The same of what the directory has said about all models: pure, the text is anybody's.
 * ERR_FORMAT. */
weir_status weir_trainer_sight_read(const char *json, const weir_trainer_wish *wish,
                                    weir_trainer_sight *out);

#endif
