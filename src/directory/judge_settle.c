/* SPDX-License-Identifier: Apache-2.0 */
/* judge_settle.c - sources compared with each other: who is superseded, and who comes first.
 *
 * A worker that has several entries means the greatest version: heartbeats of ModelExpress v2 keep
 * the entry of the first step alive for ever. A trainer rank that several workers claim was started
 * anew: the worker heard of last is the one that runs. Replicas of one number are different ones.
 * Entries that the wish refuses supersede all the same.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "directory/judge_finding.h"

static int compare_numbers(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

static int compare_times(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* Entries of one worker follow each other, its last version first. */
static int by_worker(const void *a, const void *b)
{
    const weir_judged *x = *(const weir_judged *const *)a, *y = *(const weir_judged *const *)b;
    int order = strcmp(x->candidate.role, y->candidate.role);
    if (order == 0)
        order = strcmp(x->candidate.run, y->candidate.run);
    if (order == 0)
        order = compare_numbers(x->candidate.rank, y->candidate.rank);
    if (order == 0)
        order = strcmp(x->candidate.worker_id, y->candidate.worker_id);
    if (order == 0)
        order = compare_numbers(y->candidate.version, x->candidate.version);
    if (order == 0)
        order = compare_times(y->updated_at_ms, x->updated_at_ms);
    return order != 0 ? order : strcmp(x->candidate.source_id, y->candidate.source_id);
}

static bool is_same_rank(const weir_judged *a, const weir_judged *b)
{
    return strcmp(a->candidate.role, b->candidate.role) == 0 &&
           strcmp(a->candidate.run, b->candidate.run) == 0 &&
           a->candidate.rank == b->candidate.rank;
}

static bool is_same_worker(const weir_judged *a, const weir_judged *b)
{
    return is_same_rank(a, b) && strcmp(a->candidate.worker_id, b->candidate.worker_id) == 0;
}

static void supersede(weir_judged *old, const weir_judged *newer, weir_arena *arena,
                      weir_status *status)
{
    weir_judge_findings to = { old, arena, *status };
    if (old == newer)
        return;
    const char *by = weir_judge_text(&to, "version %" PRIu64 " of worker %s is newer",
                                     newer->candidate.version, newer->candidate.worker_id);
    weir_judge_say(&to, "superseded", false, "the last word of its rank", by);
    weir_judge_conclude(&to);
    *status = to.status;
}

static int64_t last_word(weir_judged *const *entries, size_t n)
{
    int64_t last = 0;
    for (size_t i = 0; i < n; i++)
        last = entries[i]->updated_at_ms > last ? entries[i]->updated_at_ms : last;
    return last;
}

/* The entries of one rank: of each worker the first is its last version. */
static void settle_rank(weir_judged *const *entries, size_t n, weir_arena *arena,
                        weir_status *status)
{
    weir_judged *best = NULL;
    int64_t best_word = 0;
    bool is_trainer = strcmp(entries[0]->candidate.role, "trainer") == 0;
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && is_same_worker(entries[i], entries[end]); end++)
            supersede(entries[end], entries[i], arena, status);
        int64_t word = last_word(&entries[i], end - i);
        if (best == NULL || word > best_word ||
            (word == best_word && entries[i]->candidate.version > best->candidate.version)) {
            best = entries[i];
            best_word = word;
        }
    }
    for (size_t i = 0; is_trainer && i < n; i++) {
        bool is_last = i == 0 || !is_same_worker(entries[i - 1], entries[i]);
        if (is_last)
            supersede(entries[i], best, arena, status);
    }
}

static int by_preference(const void *a, const void *b)
{
    const weir_judged *x = a, *y = b;
    bool x_trains = strcmp(x->candidate.role, "trainer") == 0;
    bool y_trains = strcmp(y->candidate.role, "trainer") == 0;
    if (x->candidate.taken != y->candidate.taken)
        return x->candidate.taken ? -1 : 1;
    if (x_trains != y_trains)
        return x_trains ? -1 : 1;
    int order = compare_times(y->updated_at_ms, x->updated_at_ms);
    if (order == 0)
        order = compare_numbers(x->candidate.rank, y->candidate.rank);
    if (order == 0)
        order = strcmp(x->candidate.worker_id, y->candidate.worker_id);
    return order != 0 ? order : strcmp(x->candidate.source_id, y->candidate.source_id);
}

weir_status weir_judge_settle(weir_judged *judged, size_t n, weir_arena *arena, size_t *out_taken)
{
    size_t n_entries = 0, n_taken = 0;
    weir_status status = WEIR_OK;
    *out_taken = 0;
    if (n == 0)
        return WEIR_OK;
    weir_judged **entries = weir_arena_alloc(arena, (n + 1) * sizeof(*entries));
    if (entries == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        if (judged[i].counts)
            entries[n_entries++] = &judged[i];
    }
    qsort(entries, n_entries, sizeof(*entries), by_worker);
    for (size_t i = 0, end; i < n_entries; i = end) {
        for (end = i + 1; end < n_entries && is_same_rank(entries[i], entries[end]); end++)
            continue;
        settle_rank(&entries[i], end - i, arena, &status);
    }
    qsort(judged, n, sizeof(*judged), by_preference);
    for (size_t i = 0; i < n; i++) {
        judged[i].candidate.findings = judged[i].findings; /* it has moved */
        n_taken += judged[i].candidate.taken;
    }
    *out_taken = n_taken;
    return status;
}
