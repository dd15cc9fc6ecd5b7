/* SPDX-License-Identifier: Apache-2.0 */
/* store_model.h - the store's rules once more, written from what they say alone: arrays, no
 * indexes, no caches. A small fleet: two trainer ranks of which one is started anew, two replica
 * workers, two versions of two slots. */
#ifndef WEIR_TEST_STORE_MODEL_H
#define WEIR_TEST_STORE_MODEL_H

#include <stdbool.h>
#include <string.h>

#include "directory/store.h"

#define STEP_MS 10000u
#define WORKER_TTL 2 /* steps */
#define LEASE_TTL 1
#define MAX_STEPS 6

enum { OLD0, RANK1, NEW0, GEN0, GEN1, N_WORKERS };
enum { N_TRAINERS = 3, N_SLOTS = 2, N_VERSIONS = 2 };
static const char *const names[N_WORKERS] = { "t-0-a", "t-1-a", "t-0-b", "rep-0", "other-0" };
static const char *const slot_names[N_SLOTS] = { "a", "b" };

static inline int slot_of(int worker)
{
    return worker == RANK1;
}

typedef struct model {
    int now, n_generations;
    struct {
        bool is_known, is_superseded;
        int expires, generation;
    } workers[N_WORKERS];
    struct {
        int state;              /* 0: not made */
        int shards[N_TRAINERS]; /* generation; 0: none */
        bool is_withdrawn[N_TRAINERS];
        int leases[2];      /* the step at which they end; 0: none */
        bool reads_peer[2]; /* of those */
    } versions[N_VERSIONS];
    struct {
        bool is_there, is_superseded;
        int generation, holds; /* holds: version + 1 */
    } sources[N_WORKERS];
} model;

typedef enum kind {
    REGISTER,
    CREATE,
    PUBLISH,
    ENTER,
    HOLD,
    ACQUIRE,
    GIVE_UP,
    DELETE,
    TAKE_BACK,
    RETIRE,
    ABORT,
    TICK,
    SWEEP
} kind;

typedef struct event {
    kind what;
    int worker, version;
} event;

typedef struct outcome {
    weir_status status;
    int version, awaited;              /* of ACQUIRE: index, -1: none */
    bool by_peer, is_covered, deleted; /* deleted: of RETIRE, that somebody reads still */
    unsigned missing;                  /* bit per slot */
} outcome;

static inline bool is_alive(const model *m, int w)
{
    return m->workers[w].is_known && m->workers[w].expires > m->now;
}

static inline bool lives(const model *m, int v, int w)
{
    return m->versions[v].shards[w] != 0 && is_alive(m, w) && !m->workers[w].is_superseded;
}

static inline bool serves(const model *m, int v, int w)
{
    return lives(m, v, w) && !m->versions[v].is_withdrawn[w];
}

static inline unsigned missing_of(const model *m, int v)
{
    unsigned missing = 3;
    for (int w = 0; w < N_TRAINERS; w++)
        missing &= serves(m, v, w) ? ~(1u << slot_of(w)) : 3u;
    return missing;
}

static inline bool holds(const model *m, int v, int w)
{
    return m->sources[w].is_there && !m->sources[w].is_superseded && m->sources[w].holds == v + 1 &&
           is_alive(m, w) && m->sources[w].generation == m->workers[w].generation;
}

static inline bool has_live_lease(const model *m, int v)
{
    return m->versions[v].leases[0] > m->now || m->versions[v].leases[1] > m->now;
}

static inline bool has_direct_lease(const model *m, int v)
{
    return (m->versions[v].leases[0] > m->now && !m->versions[v].reads_peer[0]) ||
           (m->versions[v].leases[1] > m->now && !m->versions[v].reads_peer[1]);
}

/* A slot has shards, and all of them were taken back. */
static inline bool is_taken_back(const model *m, int v)
{
    unsigned withdrawn = 0, kept = 0;
    for (int w = 0; w < N_TRAINERS; w++) {
        if (m->versions[v].shards[w] != 0)
            *(m->versions[v].is_withdrawn[w] ? &withdrawn : &kept) |= 1u << slot_of(w);
    }
    return m->versions[v].state == WEIR_STORE_READY && (withdrawn & ~kept) != 0;
}

static inline void end_version(model *m, int v, int state)
{
    m->versions[v].state = state;
    for (int w = 0; w < N_TRAINERS && !has_direct_lease(m, v); w++) {
        if (m->versions[v].is_withdrawn[w])
            m->versions[v].shards[w] = 0, m->versions[v].is_withdrawn[w] = false;
    }
}

static inline int generation_of(const model *m, int w)
{
    if (m->workers[w].is_known)
        return m->workers[w].generation;
    return m->sources[w].is_there ? m->sources[w].generation : 0;
}

static inline outcome model_register(model *m, int w)
{
    if (!m->workers[w].is_known) {
        int generation = generation_of(m, w);
        m->workers[w].is_superseded = generation != 0 && m->sources[w].is_superseded;
        m->workers[w].generation = generation != 0 ? generation : ++m->n_generations;
        if (m->sources[w].is_there && !m->sources[w].is_superseded && m->sources[w].generation == 0)
            m->sources[w].generation = m->workers[w].generation;
    }
    m->workers[w].is_known = true;
    m->workers[w].expires = m->now + WORKER_TTL;
    return (outcome){ .status = WEIR_OK };
}

static inline outcome model_publish(model *m, int w, int v)
{
    outcome refused = { .status = WEIR_ERR_REFUSED };
    int state = m->versions[v].state;
    if (state == 0)
        return (outcome){ .status = WEIR_ERR_NOT_FOUND };
    if (!is_alive(m, w) || state == WEIR_STORE_RELEASING || state == WEIR_STORE_ABORTED)
        return refused;
    if (m->versions[v].shards[w] != 0) {
        m->versions[v].is_withdrawn[w] = false;
        return (outcome){ .status = WEIR_OK };
    }
    if (m->workers[w].is_superseded)
        return refused;
    m->versions[v].shards[w] = m->workers[w].generation;
    bool has_a = m->versions[v].shards[OLD0] != 0 || m->versions[v].shards[NEW0] != 0;
    if (state != WEIR_STORE_STAGING || !has_a || m->versions[v].shards[RANK1] == 0)
        return (outcome){ .status = WEIR_OK };
    m->versions[v].state = WEIR_STORE_READY;
    for (int i = 0; i < v; i++) {
        if (is_taken_back(m, i))
            end_version(m, i, WEIR_STORE_RELEASING);
    }
    return (outcome){ .status = WEIR_OK };
}

/* Two workers of one rank: the one that was started last stays. */
static inline void settle(model *m, int w, int other)
{
    if (!m->sources[other].is_there)
        return;
    int loser = m->sources[w].generation < m->sources[other].generation ? w : other;
    if (m->sources[w].generation == m->sources[other].generation)
        return;
    m->sources[loser].is_superseded = true;
    if (m->workers[loser].is_known && m->workers[loser].generation == m->sources[loser].generation)
        m->workers[loser].is_superseded = true;
}

static inline outcome model_enter(model *m, int w, int held)
{
    bool was_superseded =
        m->workers[w].is_known ? m->workers[w].is_superseded : m->sources[w].is_superseded;
    m->sources[w].generation = generation_of(m, w);
    m->sources[w].is_superseded = m->sources[w].generation != 0 && was_superseded;
    m->sources[w].is_there = true;
    m->sources[w].holds = held;
    if (w == OLD0 || w == NEW0)
        settle(m, w, w == OLD0 ? NEW0 : OLD0);
    return (outcome){ .status = WEIR_OK };
}

static inline void end_leases(model *m)
{
    for (int v = 0; v < N_VERSIONS; v++) {
        for (int g = 0; g < 2; g++) {
            if (m->versions[v].leases[g] <= m->now)
                m->versions[v].leases[g] = 0, m->versions[v].reads_peer[g] = false;
        }
    }
}

static inline outcome model_acquire(model *m, int g, int lowest)
{
    outcome out = { .status = WEIR_IN_PROGRESS, .version = -1, .awaited = -1 };
    int self = GEN0 + g, other = GEN0 + 1 - g;
    if (!is_alive(m, self))
        return (outcome){ .status = WEIR_ERR_REFUSED };
    for (int v = N_VERSIONS - 1; v >= lowest && out.version < 0; v--) {
        int state = m->versions[v].state;
        if (state == WEIR_STORE_READY && (missing_of(m, v) == 0 || holds(m, v, other)))
            out.version = v;
        else if (state != 0 && out.awaited < 0)
            out.awaited = v;
    }
    if (out.version < 0) {
        if (out.awaited >= 0 && m->versions[out.awaited].state <= WEIR_STORE_READY)
            out.missing = missing_of(m, out.awaited);
        return out;
    }
    int v = out.version;
    end_leases(m);
    int n_direct = m->versions[v].leases[1 - g] != 0 && !m->versions[v].reads_peer[1 - g];
    out.status = WEIR_OK;
    out.awaited = -1;
    out.is_covered = missing_of(m, v) == 0;
    /* Nobody but itself can read the other one: it may read another version there still. */
    int n_readers = 0;
    for (int i = 0; i < N_VERSIONS; i++)
        n_readers += i != v && m->versions[i].leases[g] != 0 && m->versions[i].reads_peer[g];
    out.by_peer =
        holds(m, v, other) && (!out.is_covered || n_readers <= n_direct); /* on its host */
    m->versions[v].leases[g] = m->now + LEASE_TTL;
    m->versions[v].reads_peer[g] = out.by_peer;
    return out;
}

static inline outcome model_give_up(model *m, int g, int v)
{
    if (m->versions[v].state == 0)
        return (outcome){ .status = WEIR_ERR_NOT_FOUND };
    bool had = m->versions[v].leases[g] > m->now;
    if (had)
        m->versions[v].leases[g] = 0, m->versions[v].reads_peer[g] = false;
    return (outcome){ .status = WEIR_OK, .deleted = had };
}

static inline outcome model_delete(model *m, int v)
{
    int state = m->versions[v].state;
    if (state == 0)
        return (outcome){ .status = WEIR_ERR_NOT_FOUND };
    if (state != WEIR_STORE_READY)
        return (outcome){ .status = WEIR_ERR_REFUSED };
    end_version(m, v, WEIR_STORE_RELEASING);
    return (outcome){ .status = WEIR_OK };
}

static inline outcome model_take_back(model *m, int w, int v)
{
    int state = m->versions[v].state;
    if (state == 0)
        return (outcome){ .status = WEIR_ERR_NOT_FOUND };
    bool others = w != RANK1 && m->versions[v].shards[w == OLD0 ? NEW0 : OLD0] != 0;
    if (m->versions[v].shards[w] == 0)
        return (outcome){ .status = others ? WEIR_ERR_REFUSED : WEIR_OK };
    if ((state != WEIR_STORE_RELEASING && state != WEIR_STORE_ABORTED) || !is_alive(m, w) ||
        has_live_lease(m, v))
        return (outcome){ .status = WEIR_ERR_REFUSED };
    m->versions[v].shards[w] = 0, m->versions[v].is_withdrawn[w] = false;
    return (outcome){ .status = WEIR_OK, .deleted = true };
}

static inline outcome model_retire(model *m, int w, int v)
{
    if (m->versions[v].shards[w] == 0)
        return (outcome){ .status = WEIR_OK };
    if (m->versions[v].state == WEIR_STORE_STAGING)
        end_version(m, v, WEIR_STORE_ABORTED);
    m->versions[v].is_withdrawn[w] = true;
    bool is_read = has_direct_lease(m, v), stays = holds(m, v, GEN0) || holds(m, v, GEN1);
    for (int i = v + 1; i < N_VERSIONS; i++)
        stays = stays && m->versions[i].state != WEIR_STORE_READY;
    if (m->versions[v].state != WEIR_STORE_READY || !stays)
        end_version(m, v,
                    m->versions[v].state == WEIR_STORE_ABORTED ? WEIR_STORE_ABORTED
                                                               : WEIR_STORE_RELEASING);
    return (outcome){ .status = WEIR_OK, .deleted = is_read };
}

static inline outcome model_abort(model *m, int w, int v)
{
    int state = m->versions[v].state;
    if (state == 0)
        return (outcome){ .status = WEIR_ERR_NOT_FOUND };
    if (state == WEIR_STORE_ABORTED)
        return (outcome){ .status = WEIR_OK };
    bool may = w < N_TRAINERS ? is_alive(m, w) || m->versions[v].shards[w] != 0
                              : m->workers[w].is_known && m->versions[v].leases[w - GEN0] > m->now;
    if (state == WEIR_STORE_RELEASING || !may)
        return (outcome){ .status = WEIR_ERR_REFUSED };
    end_version(m, v, WEIR_STORE_ABORTED);
    return (outcome){ .status = WEIR_OK };
}

static inline bool is_pinned(const model *m, int w)
{
    for (int v = 0; v < N_VERSIONS; v++) {
        if (w < N_TRAINERS && m->versions[v].shards[w] != 0)
            return true;
        if (w >= GEN0 && m->versions[v].leases[1 - (w - GEN0)] != 0 &&
            m->versions[v].reads_peer[1 - (w - GEN0)])
            return true; /* the other one reads from it */
    }
    return false;
}

/* What is taken back says so, as long as the version is there for others; what is not may be had
 * again. */
static inline bool is_of_use(const model *m, int v, int w)
{
    int state = m->versions[v].state;
    if (m->versions[v].is_withdrawn[w])
        return state == WEIR_STORE_READY;
    return (state == WEIR_STORE_STAGING || state == WEIR_STORE_READY) &&
           !m->workers[w].is_superseded && m->versions[v].shards[w] == m->workers[w].generation;
}

static inline bool may_be_held(const model *m, int v)
{
    bool is_held = false;
    for (int w = GEN0; w < N_WORKERS; w++)
        is_held |=
            m->sources[w].is_there && !m->sources[w].is_superseded && m->sources[w].holds == v + 1;
    return is_held;
}

static inline outcome model_sweep(model *m)
{
    end_leases(m);
    for (int w = 0; w < N_WORKERS; w++) {
        for (int v = 0; w < N_TRAINERS && v < N_VERSIONS; v++) {
            if (!lives(m, v, w) && !is_of_use(m, v, w) && !has_live_lease(m, v))
                m->versions[v].shards[w] = 0, m->versions[v].is_withdrawn[w] = false;
        }
        if (m->workers[w].is_known && !is_alive(m, w) && !is_pinned(m, w))
            memset(&m->workers[w], 0, sizeof(m->workers[w]));
    }
    for (int v = 0; v < N_VERSIONS; v++) {
        if (is_taken_back(m, v) && !may_be_held(m, v))
            end_version(m, v, WEIR_STORE_RELEASING);
    }
    return (outcome){ .status = WEIR_OK };
}

static inline outcome model_create(model *m, int v)
{
    if (m->versions[v].state == 0)
        m->versions[v].state = WEIR_STORE_STAGING;
    return (outcome){ .status = WEIR_OK };
}

static inline outcome model_do(model *m, event e)
{
    switch (e.what) {
    case REGISTER:
        return model_register(m, e.worker);
    case CREATE:
        return model_create(m, e.version);
    case PUBLISH:
        return model_publish(m, e.worker, e.version);
    case ENTER:
        return model_enter(m, e.worker, 0);
    case HOLD:
        return model_enter(m, e.worker, e.version + 1);
    case ACQUIRE:
        return model_acquire(m, e.worker - GEN0, e.version);
    case GIVE_UP:
        return model_give_up(m, e.worker - GEN0, e.version);
    case DELETE:
        return model_delete(m, e.version);
    case TAKE_BACK:
        return model_take_back(m, e.worker, e.version);
    case RETIRE:
        return model_retire(m, e.worker, e.version);
    case ABORT:
        return model_abort(m, e.worker, e.version);
    case TICK:
        m->now++;
        return (outcome){ .status = WEIR_OK };
    case SWEEP:
        break;
    }
    return model_sweep(m);
}

#endif
