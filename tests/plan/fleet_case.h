/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_case.h - random fleets for tests/plan, and what each rank and worker must have, worked out
 * element by element from the words of mesh.h: nothing of src/plan is used for it. */
#ifndef WEIR_TESTS_PLAN_FLEET_CASE_H
#define WEIR_TESTS_PLAN_FLEET_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "weir/mesh.h"

#define CASE_MAX 24

typedef struct fleet_case {
    uint64_t state;
    weir_trainer_mesh trainer;
    weir_replica_mesh replica;
    weir_fleet_tensor tensors[CASE_MAX];
    size_t n_tensors;
    uint32_t n_layers;
    uint32_t owners[64], ids[256], first[65];
} fleet_case;

static inline uint64_t case_random(fleet_case *c, uint64_t n)
{
    c->state ^= c->state << 13;
    c->state ^= c->state >> 7;
    c->state ^= c->state << 17;
    return (c->state * 0x2545F4914F6CDD1D >> 33) % n;
}

/* Small blocks, so that small matrices have many borders. */
#define CASE_CONVERSION(label, rows, cols, magnitude)                                             \
    {                                                                                             \
        .size = sizeof(weir_conversion), .name = label, .border_rows = rows, .border_cols = cols, \
        .n_outputs = 2,                                                                           \
        .outputs = { { "weight", WEIR_F8_E4M3, 1, 1 }, { "scale", WEIR_F32, rows, cols } },       \
        .by_magnitude = magnitude,                                                                \
    }
static const weir_conversion case_conversions[] = {
    CASE_CONVERSION("block_4x4", 4, 4, false),
    CASE_CONVERSION("channel", 1, WEIR_WHOLE, false),
    CASE_CONVERSION("tensor", WEIR_WHOLE, WEIR_WHOLE, false),
    { .size = sizeof(weir_conversion),
      .name = "cast",
      .border_rows = 1,
      .border_cols = 1,
      .n_outputs = 1,
      .outputs = { { "weight", WEIR_BF16, 1, 1 } } },
    CASE_CONVERSION("magnitude_4x4", 4, 4, true), /* as the first two, but for that */
    CASE_CONVERSION("magnitude_channel", 1, WEIR_WHOLE, true),
};

/* ---- making one ------------------------------------------------------------------------------*/

/* Parts of a source each, all of one, or some of which share one. */
static inline void case_parts(fleet_case *c, weir_fleet_tensor *t)
{
    uint32_t width =
        t->n_experts > 0 ? c->replica.dp * c->replica.tp / c->replica.ep : c->replica.tp;
    uint32_t n = 1 + (uint32_t)case_random(c, WEIR_MAX_PARTS), source = 0;
    uint64_t one_in = 1 + case_random(c, 3);
    bool apart = case_random(c, 2) == 0;
    uint64_t rows = (1 + case_random(c, 4)) * 4 * width; /* an expert's width in whole blocks */
    for (uint32_t p = 0; p < n; p++) {
        weir_fleet_part *part = &t->parts[p];
        part->units = 0;
        if (t->n_experts == 0)
            rows = width * (1 + case_random(c, 9));
        if (t->cut == WEIR_CUT_COLUMN && t->n_experts == 0 && case_random(c, 3) <= (p > 0)) {
            part->units = width * (1 + (uint32_t)case_random(c, 2));
            if (p > 0 && case_random(c, 3) != 0)
                part->units = width % 2 == 0 && case_random(c, 2) == 0 ? width / 2 : 1;
            rows = part->units * (1 + case_random(c, 6));
        }
        source += p > 0 && (apart || case_random(c, one_in) != 0);
        part->n_rows = rows;
        part->source = source;
        part->first_row = t->source_rows[source];
        t->source_rows[source] += rows;
    }
    t->n_parts = n;
    t->n_sources = source + 1;
}

/* What engines cut, they cut at blocks. */
static inline void case_whole_blocks(weir_fleet_tensor *t)
{
    for (uint32_t p = 0; p < t->n_parts && t->cut == WEIR_CUT_COLUMN; p++) {
        t->parts[p].n_rows *= 4;
        t->parts[p].first_row *= 4;
    }
    for (uint32_t s = 0; s < t->n_sources && t->cut == WEIR_CUT_COLUMN; s++)
        t->source_rows[s] *= 4;
    if (t->cut == WEIR_CUT_ROW)
        t->n_cols *= 4;
}

static inline weir_fleet_tensor case_tensor(fleet_case *c)
{
    weir_fleet_tensor t = { .name = "x",
                            .conversion = &case_conversions[case_random(c, 4)],
                            .cut = (weir_cut)case_random(c, 4),
                            .layer = (int32_t)case_random(c, c->n_layers),
                            .source_bits = 16,
                            .n_cols = 1 + case_random(c, 30) };
    if (c->trainer.expert_owners != NULL || c->replica.expert_ids != NULL || case_random(c, 3) == 0)
        t.n_experts = c->trainer.n_expert_owners;
    if (t.cut == WEIR_CUT_VOCABULARY && t.n_experts > 0)
        t.cut = WEIR_CUT_ROW;
    t.stacked = t.n_experts > 0 && case_random(c, 2) == 0;
    uint32_t width =
        t.n_experts > 0 ? c->replica.dp * c->replica.tp / c->replica.ep : c->replica.tp;
    if (t.cut == WEIR_CUT_ROW) {
        t.n_cols = width * (t.n_experts > 0 ? 4 : 1) * (1 + case_random(c, 9));
        if (t.n_experts > 0) /* whole blocks of every conversion: its width is the block */
            t.n_cols = 4 * width * (1 + case_random(c, 2));
    }
    if (t.n_experts > 0 && t.conversion->border_rows == WEIR_WHOLE)
        t.conversion = &case_conversions[0];
    if (t.cut == WEIR_CUT_VOCABULARY) {
        t.n_parts = t.n_sources = 1;
        t.source_rows[0] = t.parts[0].n_rows = 1 + case_random(c, 90);
    } else {
        case_parts(c, &t);
    }
    if (t.conversion == &case_conversions[0] && t.n_experts == 0 && c->replica.tp > 1)
        case_whole_blocks(&t);
    if (t.conversion < &case_conversions[2] && case_random(c, 2) == 0)
        t.conversion += 4;
    if (case_random(c, 6) == 0)
        t.layer = case_random(c, 2) ? WEIR_LAYER_BEFORE : WEIR_LAYER_BEHIND;
    t.tied = t.cut == WEIR_CUT_VOCABULARY && t.layer == WEIR_LAYER_BEFORE && case_random(c, 2);
    return t;
}

/* Every expert somewhere, some twice, in any order. */
static inline void case_expert_map(fleet_case *c, uint32_t n_experts)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < c->replica.ep; e++) {
        c->first[e] = n;
        for (uint32_t x = 0; x < n_experts; x++) {
            if (x % c->replica.ep == e || case_random(c, 4) == 0) {
                uint32_t at = c->first[e] + (uint32_t)case_random(c, n - c->first[e] + 1);
                c->ids[n++] = c->ids[at];
                c->ids[at] = x;
            }
        }
    }
    c->first[c->replica.ep] = n;
    c->replica.expert_ids = c->ids;
    c->replica.expert_first = c->first;
}

static inline uint32_t case_small(fleet_case *c)
{
    static const uint32_t sizes[] = { 1, 1, 1, 2, 2, 3, 4 };
    return sizes[case_random(c, 7)];
}

static inline void case_init(fleet_case *c, uint64_t seed)
{
    memset(c, 0, sizeof(*c));
    c->state = seed * 0x9E3779B97F4A7C15 + 1;
    c->trainer.pp = case_small(c);
    c->trainer.hsdp = case_small(c);
    c->trainer.fsdp = case_small(c);
    c->trainer.ep = case_small(c);
    c->trainer.tp = case_small(c);
    c->trainer.dense_whole = case_random(c, 4) == 0;
    c->trainer.sender = (uint32_t)case_random(c, c->trainer.hsdp);
    c->replica = (weir_replica_mesh){
        case_small(c), 1,   case_small(c), case_small(c), 1 + (uint32_t)case_random(c, 2), 4,
        NULL,          NULL
    };
    uint32_t workers = c->replica.dp * c->replica.tp;
    c->replica.ep = case_random(c, 2) ? workers : 1;
    if (workers % 2 == 0 && case_random(c, 3) == 0)
        c->replica.ep = workers / 2;
    while (c->replica.vocabulary_pad % c->replica.tp != 0)
        c->replica.vocabulary_pad++;
    c->trainer.n_expert_owners = 1 + (uint32_t)case_random(c, 9);
    if (case_random(c, 2) == 0) {
        for (uint32_t x = 0; x < c->trainer.n_expert_owners; x++)
            c->owners[x] = (uint32_t)case_random(c, c->trainer.ep);
        c->trainer.expert_owners = c->owners;
    }
    if (case_random(c, 2) == 0)
        case_expert_map(c, c->trainer.n_expert_owners);
    c->n_layers = 1 + (uint32_t)case_random(c, 7);
    c->n_tensors = 1 + case_random(c, 8);
    for (size_t i = 0; i < c->n_tensors; i++)
        c->tensors[i] = case_tensor(c);
}

/* ---- what trainer ranks hold -----------------------------------------------------------------*/

/* torch.chunk: the index of the piece that has element `at` of n in pieces of ceil(n / k). */
static inline uint64_t case_chunk_of(uint64_t n, uint64_t k, uint64_t at, uint64_t *out_lo,
                                     uint64_t *out_hi)
{
    uint64_t chunk = (n + k - 1) / k;
    *out_lo = at / chunk * chunk;
    *out_hi = *out_lo + chunk < n ? *out_lo + chunk : n;
    return at / chunk;
}

/* Which rows of a part, counted in it, a rank of tensor parallelism has. */
static inline void case_part_rows(const fleet_case *c, const weir_fleet_part *part, uint32_t p,
                                  uint32_t tp, uint64_t *lo, uint64_t *hi)
{
    uint64_t each = (part->n_rows + c->trainer.tp - 1) / c->trainer.tp;
    *lo = each * tp;
    if (p > 0 && part->units > 0 && part->units < c->trainer.tp &&
        c->trainer.tp % part->units == 0) {
        each = part->n_rows / part->units; /* one head, which neighbours have too */
        *lo = each * (tp / (c->trainer.tp / part->units));
    }
    if (part->units > 0 && part->units % c->trainer.tp == 0)
        assert_int_equal(each % (part->n_rows / part->units), 0);
    *lo = *lo < part->n_rows ? *lo : part->n_rows;
    *hi = *lo + each < part->n_rows ? *lo + each : part->n_rows;
}

/* Whether a rank of tensor parallelism has that element; its row is number *at of *n there. */
static inline bool case_tp_holds(const fleet_case *c, const weir_fleet_tensor *t, uint32_t source,
                                 uint32_t tp, uint64_t row, uint64_t col, uint64_t *at, uint64_t *n)
{
    uint64_t skip;
    bool found = false;
    *at = row;
    *n = t->source_rows[source];
    if (t->cut == WEIR_CUT_NONE || t->cut == WEIR_CUT_ONE_RANK)
        return true;
    if (t->cut == WEIR_CUT_ROW)
        return case_chunk_of(t->n_cols, c->trainer.tp, col, &skip, &skip) == tp;
    *n = 0;
    for (uint32_t p = 0; p < t->n_parts; p++) {
        const weir_fleet_part *part = &t->parts[p];
        uint64_t lo, hi;
        if (part->source != source)
            continue;
        case_part_rows(c, part, p, tp, &lo, &hi);
        if (row >= part->first_row + lo && row < part->first_row + hi) {
            *at = *n + row - part->first_row - lo;
            found = true;
        }
        *n += hi - lo;
    }
    return found;
}

/* The rows that can be one piece of a rank's memory with that one: its part's, where those lie
 * elsewhere at other ranks; else all. */
static inline uint32_t case_part_of(const fleet_case *c, const weir_fleet_tensor *t,
                                    uint32_t source, uint64_t row)
{
    for (uint32_t p = 0; p < t->n_parts && t->cut == WEIR_CUT_COLUMN && c->trainer.tp > 1; p++) {
        if (t->parts[p].source == source && row >= t->parts[p].first_row &&
            row < t->parts[p].first_row + t->parts[p].n_rows)
            return p;
    }
    return 0;
}

/* Whether the rank holds that element, and is the one of its HSDP group that may send. */
static inline bool case_holds(const fleet_case *c, const weir_fleet_tensor *t, uint32_t rank,
                              uint32_t source, uint32_t expert, uint64_t row, uint64_t col)
{
    const weir_trainer_mesh *m = &c->trainer;
    uint32_t tp = rank % m->tp, e = rank / m->tp % m->ep, f = rank / m->tp / m->ep % m->fsdp;
    uint32_t group = rank / m->tp / m->ep / m->fsdp % m->hsdp;
    uint32_t stage = rank / m->tp / m->ep / m->fsdp / m->hsdp;
    uint32_t n_layers = 0, layer_stage = 0;
    for (size_t i = 0; i < c->n_tensors; i++) {
        int32_t layer = c->tensors[i].layer;
        if (layer >= 0 && layer != WEIR_LAYER_BEHIND && (uint32_t)layer >= n_layers)
            n_layers = (uint32_t)layer + 1;
    }
    if (t->layer == WEIR_LAYER_BEHIND)
        layer_stage = m->pp - 1;
    else if (t->layer >= 0)
        while ((layer_stage + 1) * n_layers / m->pp <= (uint32_t)t->layer)
            layer_stage++;
    if (stage != layer_stage || group != m->sender)
        return false;
    uint64_t at, n_rows, skip;
    if (!case_tp_holds(c, t, source, tp, row, col, &at, &n_rows))
        return false;
    if (t->n_experts == 0 && m->dense_whole != 0)
        return true;
    if (t->n_experts == 0)
        return case_chunk_of(n_rows, m->fsdp * m->ep, at, &skip, &skip) == f * m->ep + e;
    uint32_t per = (t->n_experts + m->ep - 1) / m->ep, place = 0, n_local = 0;
    for (uint32_t x = 0; x < t->n_experts; x++) {
        uint32_t owner = m->expert_owners != NULL ? m->expert_owners[x] : x / per;
        if (owner == e) {
            place += x < expert;
            n_local++;
        }
        if (x == expert && owner != e)
            return false;
    }
    if (t->stacked)
        return case_chunk_of(n_local, m->fsdp, place, &skip, &skip) == f;
    return case_chunk_of(n_rows, m->fsdp, at, &skip, &skip) == f;
}

/* ---- what workers need -----------------------------------------------------------------------*/

static inline uint64_t case_value(uint32_t source, uint32_t expert, uint64_t row, uint64_t col)
{
    return ((((uint64_t)source * 1000 + expert) * 100000 + row) * 100000 + col) + 1;
}

/* The matrix of a worker, element by element; 0 is padding. NULL: none. */
static inline uint64_t *case_expected(const fleet_case *c, const weir_fleet_tensor *t, uint32_t d,
                                      uint32_t tp, uint32_t expert, uint64_t *out_rows,
                                      uint64_t *out_cols)
{
    uint32_t n = c->replica.tp, at = tp;
    if (t->n_experts > 0) {
        n = c->replica.dp * c->replica.tp / c->replica.ep;
        at = (d * c->replica.tp + tp) % n;
    }
    uint64_t cols = t->cut == WEIR_CUT_ROW ? t->n_cols / n : t->n_cols, rows = 0;
    uint64_t col0 = t->cut == WEIR_CUT_ROW ? at * cols : 0, capacity = 0;
    for (uint32_t p = 0; p < t->n_parts; p++)
        capacity += t->parts[p].n_rows + c->replica.vocabulary_pad;
    uint64_t *matrix = calloc(capacity * cols + 1, sizeof(*matrix));
    assert_non_null(matrix);
    for (uint32_t p = 0; p < t->n_parts; p++) {
        const weir_fleet_part *part = &t->parts[p];
        uint64_t lo = 0, hi = part->n_rows, padded = 0;
        if (t->cut == WEIR_CUT_COLUMN && part->units > 0 && part->units < n) {
            lo = part->n_rows / part->units * (at / (n / part->units));
            hi = lo + part->n_rows / part->units;
        } else if (t->cut == WEIR_CUT_COLUMN) {
            lo = part->n_rows / n * at;
            hi = lo + part->n_rows / n;
        } else if (t->cut == WEIR_CUT_VOCABULARY) {
            uint64_t pad = c->replica.vocabulary_pad;
            padded = (part->n_rows + pad - 1) / pad * pad / n;
            lo = padded * at;
            hi = lo + padded;
        }
        for (uint64_t r = lo; r < hi; r++, rows++) {
            for (uint64_t k = 0; k < cols && r < part->n_rows; k++)
                matrix[rows * cols + k] =
                    case_value(part->source, expert, part->first_row + r, col0 + k);
        }
    }
    *out_rows = rows;
    *out_cols = cols;
    return matrix;
}

#endif
