/* SPDX-License-Identifier: Apache-2.0 */
/* store_word.c - what became of versions, as their workers said: history for people.
 *
 * A history is of one version number of a run, every attempt. A run keeps its greatest numbers;
 * when words are many, a run that says more forgets its own oldest first. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"
#include "rpc/rpc_message.h"

#define KEEP_RUN_FACTOR 24u /* of forget_after_ms: words of a run without versions */

/* ---- finding ---------------------------------------------------------------------------------*/

static store_history *find_history(const store_run *run, uint64_t number)
{
    for (store_link *link = run->histories.next; link != &run->histories; link = link->next) {
        store_history *history = WEIR_STORE_OF(store_history, link, link);
        if (history->number <= number)
            return history->number == number ? history : NULL;
    }
    return NULL;
}

static uint64_t hash_word(const weir_store *store, const store_history *history,
                          const weir_store_word *word)
{
    uint64_t hash = weir_store_hash_text(store->seed, history->run->name);
    hash = weir_store_hash_text(hash, history->run->model->name);
    hash = weir_store_hash_text(hash, word->version_uid);
    return weir_store_hash_text(hash, word->worker_id);
}

store_word *weir_store_find_word(const weir_store *store, const store_history *history,
                                 const weir_store_word *word)
{
    store_node *node = weir_store_index_first(&store->words, hash_word(store, history, word));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_word *known = WEIR_STORE_OF(store_word, node, node);
        if (known->history == history && strcmp(known->view.version_uid, word->version_uid) == 0 &&
            strcmp(known->view.worker_id, word->worker_id) == 0)
            return known;
    }
    return NULL;
}

static const weir_store_word *first_word(const store_history *history)
{
    return history->n_words != 0 ? &WEIR_STORE_OF(store_word, link, history->words.next)->view
                                 : NULL;
}

const weir_store_word *weir_store_words(const weir_store *store, const char *model, const char *run,
                                        uint64_t number)
{
    const store_model *of = weir_store_find_model(store, model);
    const store_run *found = of != NULL ? weir_store_find_run(store, of, run) : NULL;
    const store_history *history = found != NULL ? find_history(found, number) : NULL;
    return history != NULL ? first_word(history) : NULL;
}

/* ---- dropping --------------------------------------------------------------------------------*/

static void drop_word(weir_store *store, store_word *word)
{
    store_history *history = word->history;
    if (word->link.prev != &history->words)
        WEIR_STORE_OF(store_word, link, word->link.prev)->view.next = word->view.next;
    weir_store_list_remove(&word->link);
    weir_store_index_remove(&store->words, &word->node);
    weir_store_free(store, word, word->block_bytes);
    history->n_words--;
    store->n_words--;
}

/* The run may be without anything then. */
static void drop_history(weir_store *store, store_history *history)
{
    while (history->n_words != 0)
        drop_word(store, WEIR_STORE_OF(store_word, link, history->words.next));
    weir_store_list_remove(&history->link);
    history->run->n_histories--;
    weir_store_free(store, history, sizeof(*history));
}

/* ---- adding ----------------------------------------------------------------------------------*/

store_history *weir_store_add_history(weir_store *store, store_run *run, uint64_t number)
{
    store_history *history = weir_store_alloc(store, sizeof(*history));
    if (history == NULL)
        return NULL;
    history->run = run;
    history->number = number;
    weir_store_list_init(&history->words);
    store_link *place = run->histories.next;
    while (place != &run->histories && WEIR_STORE_OF(store_history, link, place)->number > number)
        place = place->next;
    weir_store_list_add_before(place, &history->link);
    run->n_histories++;
    return history;
}

static size_t word_bytes(const weir_store_word *word)
{
    size_t n = sizeof(store_word) + strlen(word->worker_id) + strlen(word->role) +
               strlen(word->host) + strlen(word->read_from) + strlen(word->text) +
               strlen(word->trace_id) + strlen(word->version_uid) + 7;
    for (size_t i = 0; i < word->n_spans; i++)
        n += sizeof(weir_store_span) + strlen(word->spans[i].name) +
             strlen(weir_store_text(word->spans[i].peer)) + 2;
    return n;
}

store_word *weir_store_add_word(weir_store *store, store_history *history,
                                const weir_store_word *word)
{
    size_t n_bytes = word_bytes(word);
    store_word *added = weir_store_alloc(store, n_bytes);
    if (added == NULL)
        return NULL;
    weir_store_span *spans = (void *)(added + 1);
    char *at = (char *)(spans + word->n_spans);
    weir_store_word *view = &added->view;
    added->history = history;
    added->block_bytes = n_bytes;
    *view = *word;
    view->next = NULL;
    view->number = history->number;
    view->run = history->run->name;
    view->worker_id = weir_store_put_text(&at, word->worker_id);
    view->role = weir_store_put_text(&at, word->role);
    view->host = weir_store_put_text(&at, word->host);
    view->read_from = weir_store_put_text(&at, word->read_from);
    view->text = weir_store_put_text(&at, word->text);
    view->trace_id = weir_store_put_text(&at, word->trace_id);
    view->version_uid = weir_store_put_text(&at, word->version_uid);
    for (size_t i = 0; i < word->n_spans; i++) {
        spans[i] = word->spans[i];
        spans[i].name = weir_store_put_text(&at, word->spans[i].name);
        spans[i].peer = weir_store_put_text(&at, weir_store_text(word->spans[i].peer));
    }
    view->spans = word->n_spans != 0 ? spans : NULL;
    if (history->n_words != 0)
        WEIR_STORE_OF(store_word, link, history->words.prev)->view.next = view;
    weir_store_list_add_before(&history->words, &added->link);
    weir_store_index_add(&store->words, &added->node, hash_word(store, history, view));
    history->n_words++;
    store->n_words++;
    return added;
}

weir_status weir_store_check_word(const weir_store_word *word)
{
    const char *const optional[][2] = {
        { "run", word->run },           { "role", word->role },
        { "host", word->host },         { "read_from", word->read_from },
        { "trace_id", word->trace_id }, { "version_uid", word->version_uid },
    };
    weir_status status = weir_store_check_name("worker_id", word->worker_id);
    for (size_t i = 0; status == WEIR_OK && i < sizeof(optional) / sizeof(optional[0]); i++)
        status = weir_store_check_optional(optional[i][0], optional[i][1]);
    if (status == WEIR_OK && word->n_spans > WEIR_STORE_MAX_SPANS)
        return weir_fail(WEIR_ERR_INVALID, "%zu spans of time, at most %u are allowed",
                         word->n_spans, WEIR_STORE_MAX_SPANS);
    for (size_t i = 0; status == WEIR_OK && i < word->n_spans; i++) {
        status = weir_store_check_name("span", word->spans[i].name);
        if (status == WEIR_OK)
            status = weir_store_check_optional("span", weir_store_text(word->spans[i].peer));
    }
    return status;
}

static store_history *oldest_of(const store_run *run)
{
    return WEIR_STORE_OF(store_history, link, run->histories.prev);
}

static bool is_too_old(const store_run *run, uint64_t number)
{
    return run->n_histories == WEIR_STORE_MAX_HISTORIES && oldest_of(run)->number > number;
}

/* A run's oldest history goes for a new one; the numbers that are kept are the greatest. */
static weir_status put_word(weir_store *store, store_run *run, const weir_store_word *word)
{
    weir_status status = WEIR_OK;
    store_history *history = find_history(run, word->number);
    if (history == NULL)
        history = weir_store_add_history(store, run, word->number);
    if (history == NULL)
        return WEIR_ERR_NO_MEMORY;
    store_word *known = weir_store_find_word(store, history, word);
    if (known == NULL && store->n_words >= WEIR_STORE_MAX_WORDS && oldest_of(run) == history)
        status = weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %u words about versions",
                           WEIR_STORE_MAX_WORDS);
    if (status == WEIR_OK && weir_store_add_word(store, history, word) == NULL)
        status = WEIR_ERR_NO_MEMORY;
    if (status != WEIR_OK) {
        if (history->n_words == 0)
            drop_history(store, history);
        return status;
    }
    if (known != NULL)
        drop_word(store, known);
    while (run->n_histories > WEIR_STORE_MAX_HISTORIES || store->n_words > WEIR_STORE_MAX_WORDS)
        drop_history(store, oldest_of(run));
    return WEIR_OK;
}

static weir_status put_checked(weir_store *store, const char *model_name,
                               const weir_store_word *word)
{
    store_model *model = weir_store_have_model(store, model_name);
    if (model == NULL)
        return WEIR_ERR_NO_MEMORY;
    store_run *run = weir_store_have_run(store, model, weir_store_text(word->run));
    if (run == NULL) {
        weir_store_let_model(store, model);
        return WEIR_ERR_NO_MEMORY;
    }
    weir_status status = is_too_old(run, word->number) ? WEIR_OK : put_word(store, run, word);
    if (status == WEIR_OK) {
        run->worded_at_ms = word->at_ms;
        weir_store_note_change(store, model);
    }
    weir_store_let_run(store, run);
    return status;
}

weir_status weir_store_put_word(weir_store *store, const char *model, const weir_store_word *word,
                                uint64_t now_ms)
{
    char text[WEIR_STORE_MAX_TEXT + 1];
    weir_store_word wanted = *word;
    wanted.role = weir_store_text(word->role);
    wanted.host = weir_store_text(word->host);
    wanted.read_from = weir_store_text(word->read_from);
    wanted.trace_id = weir_store_text(word->trace_id);
    wanted.version_uid = weir_store_text(word->version_uid);
    wanted.at_ms = now_ms;
    weir_status status = weir_store_check_name("model_name", model);
    if (status == WEIR_OK)
        status = weir_store_check_word(&wanted);
    if (status != WEIR_OK)
        return status;
    snprintf(text, sizeof(text), "%s", weir_store_text(word->text));
    weir_rpc_text_repair(text); /* it may have been cut */
    wanted.text = text;
    return put_checked(store, model, &wanted);
}

/* ---- listing and sweeping --------------------------------------------------------------------*/

typedef struct word_visit {
    bool (*visit)(void *context, const char *model, const weir_store_word *word);
    void *context;
} word_visit;

static bool visit_model(const store_model *model, const word_visit *to)
{
    for (const store_link *run = model->runs.next; run != &model->runs; run = run->next) {
        const store_link *head = &WEIR_STORE_OF(store_run, link, run)->histories;
        for (const store_link *link = head->next; link != head; link = link->next) {
            const weir_store_word *word = first_word(WEIR_STORE_OF(store_history, link, link));
            for (; word != NULL; word = word->next) {
                if (!to->visit(to->context, model->name, word))
                    return false;
            }
        }
    }
    return true;
}

void weir_store_each_word(const weir_store *store, const char *model,
                          bool (*visit)(void *context, const char *model,
                                        const weir_store_word *word),
                          void *context)
{
    const word_visit to = { visit, context };
    if (model != NULL) {
        const store_model *of = weir_store_find_model(store, model);
        if (of != NULL)
            visit_model(of, &to);
        return;
    }
    const store_link *head = &store->all_models;
    for (const store_link *link = head->next; link != head; link = link->next) {
        if (!visit_model(WEIR_STORE_OF(store_model, link, link), &to))
            return;
    }
}

static void drop_words_of(weir_store *store, store_run *run)
{
    weir_store_note_change(store, run->model);
    while (run->n_histories != 0)
        drop_history(store, oldest_of(run));
    weir_store_let_run(store, run);
}

static bool is_over(const store_run *run, uint64_t keep_ms, uint64_t now_ms)
{
    return run->n_versions == 0 && now_ms > run->worded_at_ms &&
           now_ms - run->worded_at_ms > keep_ms;
}

static void sweep_model(weir_store *store, store_model *model, bool all, uint64_t now_ms)
{
    uint64_t keep_ms = 0;
    if (__builtin_mul_overflow(store->options.forget_after_ms, (uint64_t)KEEP_RUN_FACTOR, &keep_ms))
        keep_ms = UINT64_MAX;
    model->n_users++; /* so that it does not go with its last run */
    for (store_link *link = model->runs.next, *next; link != &model->runs; link = next) {
        store_run *run = WEIR_STORE_OF(store_run, link, link);
        next = link->next;
        if (all || is_over(run, keep_ms, now_ms))
            drop_words_of(store, run);
    }
    model->n_users--;
    weir_store_let_model(store, model);
}

static void sweep_models(weir_store *store, bool all, uint64_t now_ms)
{
    store_link *head = &store->all_models;
    for (store_link *link = head->next, *next; link != head; link = next) {
        next = link->next;
        sweep_model(store, WEIR_STORE_OF(store_model, link, link), all, now_ms);
    }
}

/* Words outlive their versions, so that what went wrong can be looked at later; but not for ever.
 */
void weir_store_sweep_words(weir_store *store, uint64_t now_ms)
{
    sweep_models(store, false, now_ms);
}

void weir_store_drop_words(weir_store *store)
{
    sweep_models(store, true, 0);
}
