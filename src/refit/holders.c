/* SPDX-License-Identifier: Apache-2.0 */
/* holders.c - writes and reads the texts of ranks, and compares what they say of each tensor. */
#include "refit/holders.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "plan/held_check.h"

/* One line of one rank's text. */
typedef struct holder_line {
    uint32_t rank;
    size_t number; /* within the rank's text */
    const char *worker;
    weir_tensor_registry *registry;
} holder_line;

/* What a rank says of a tensor. */
typedef struct holder_word {
    const weir_tensor_descriptor *tensor;
    const holder_line *line;
} holder_word;

struct weir_holders {
    holder_line *lines;
    size_t n_lines;
    char (*workers)[WEIR_NAME_BYTES]; /* of each rank */
    weir_tensor_shard *tensors;
    size_t n_tensors;
};

/* ---- writing ---------------------------------------------------------------------------------*/

static bool is_empty(const weir_box *box)
{
    for (uint32_t a = 0; a < box->rank && a < WEIR_MAX_RANK; a++) {
        if (box->lo[a] >= box->hi[a])
            return true;
    }
    return false;
}

static weir_status describe(const weir_tensor_shard *shard, weir_tensor_descriptor *out)
{
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT];
    weir_describe_args args = WEIR_DESCRIBE_ARGS_INIT;
    args.source = WEIR_SOURCE_BOX;
    args.name = shard->local.name;
    args.dtype = shard->local.dtype;
    args.local_shape = shard->local.shape;
    args.global_shape = shard->global_shape;
    args.box = shard->box;
    weir_status status = weir_tensor_describe(&args, out);
    if (status != WEIR_OK)
        return status;
    weir_shape extent = weir_box_shape(&shard->box);
    if (weir_shape_equal(&extent, &shard->local.shape))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "%s: its box has shape %s, its memory was registered as %s",
                     args.name, weir_shape_text(&extent, want, sizeof(want)),
                     weir_shape_text(&shard->local.shape, got, sizeof(got)));
}

typedef struct named_box {
    weir_tensor_descriptor tensor;
    size_t number; /* in the order of registration */
    size_t line;
} named_box;

static int compare_names(const void *a, const void *b)
{
    const named_box *x = a, *y = b;
    int order = strcmp(x->tensor.name, y->tensor.name);
    return order != 0 ? order : (x->number > y->number) - (x->number < y->number);
}

static int compare_lines(const void *a, const void *b)
{
    const named_box *x = a, *y = b;
    if (x->line != y->line)
        return x->line < y->line ? -1 : 1;
    return (x->number > y->number) - (x->number < y->number);
}

/* Which line each box is on: as many lines as a tensor has boxes. */
static weir_status sort_boxes(const weir_tensor_shard *shards, size_t n_shards, named_box *boxes,
                              size_t *out_n)
{
    size_t n = 0;
    for (size_t i = 0; i < n_shards; i++) {
        if (is_empty(&shards[i].box))
            continue;
        weir_status status = describe(&shards[i], &boxes[n].tensor);
        if (status != WEIR_OK)
            return status;
        boxes[n].number = i;
        n++;
    }
    qsort(boxes, n, sizeof(*boxes), compare_names);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(boxes[i - 1].tensor.name, boxes[i].tensor.name) == 0)
            boxes[i].line = boxes[i - 1].line + 1;
    }
    qsort(boxes, n, sizeof(*boxes), compare_lines);
    *out_n = n;
    return WEIR_OK;
}

static weir_status add_line(const weir_tensor_descriptor *tensors, size_t n, char **text,
                            size_t *n_bytes)
{
    char *line;
    weir_tensor_registry registry = { .world = { 1, 1, 1, 1 }, .tensors = tensors, .n_tensors = n };
    weir_status status = weir_tensor_registry_encode(&registry, &line);
    if (status != WEIR_OK)
        return status;
    size_t line_bytes = strlen(line);
    char *grown = weir_realloc(*text, *n_bytes + line_bytes + 2);
    if (grown == NULL) {
        weir_string_free(line);
        return WEIR_ERR_NO_MEMORY;
    }
    if (*n_bytes > 0)
        grown[(*n_bytes)++] = '\n';
    memcpy(grown + *n_bytes, line, line_bytes + 1);
    *n_bytes += line_bytes;
    *text = grown;
    weir_string_free(line);
    return WEIR_OK;
}

/* Of a rank that holds nothing the text is one document without tensors. */
static weir_status write_lines(const named_box *boxes, size_t n, weir_tensor_descriptor *tensors,
                               char **text, size_t *n_bytes)
{
    weir_status status = WEIR_OK;
    size_t first = 0;
    do {
        size_t end = first;
        while (end < n && boxes[end].line == boxes[first].line) {
            tensors[end - first] = boxes[end].tensor;
            end++;
        }
        status = add_line(tensors, end - first, text, n_bytes);
        first = end;
    } while (first < n && status == WEIR_OK);
    return status;
}

weir_status weir_holders_describe(const weir_tensor_shard *shards, size_t n_shards, char **out,
                                  size_t *out_n_bytes)
{
    size_t n = 0, n_bytes = 0;
    char *text = NULL;
    named_box *boxes = weir_alloc_zeroed(n_shards, sizeof(*boxes));
    weir_tensor_descriptor *tensors = weir_alloc_zeroed(n_shards, sizeof(*tensors));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (boxes != NULL && tensors != NULL)
        status = sort_boxes(shards, n_shards, boxes, &n);
    if (status == WEIR_OK)
        status = write_lines(boxes, n, tensors, &text, &n_bytes);
    weir_free(boxes);
    weir_free(tensors);
    if (status != WEIR_OK) {
        weir_free(text);
        return status;
    }
    *out = text;
    *out_n_bytes = n_bytes;
    return WEIR_OK;
}

/* ---- reading ---------------------------------------------------------------------------------*/

static size_t count_lines(const weir_registry_text *text)
{
    size_t n = 1;
    for (size_t i = 0; i < text->n_bytes; i++)
        n += text->text[i] == '\n';
    return n;
}

static weir_status read_text(weir_holders *holders, const weir_registry_text *text, uint32_t rank)
{
    const char *at = text->text, *end = at + text->n_bytes;
    snprintf(holders->workers[rank], sizeof(holders->workers[rank]), "%s", text->worker);
    for (size_t number = 0; at <= end; number++) {
        const char *stop = at < end ? memchr(at, '\n', (size_t)(end - at)) : NULL;
        stop = stop != NULL ? stop : end;
        holder_line *line = &holders->lines[holders->n_lines];
        *line = (holder_line){ rank, number, holders->workers[rank], NULL };
        weir_status status = weir_tensor_registry_decode(at, (size_t)(stop - at), &line->registry);
        if (status != WEIR_OK) {
            weir_error_prefix("rank %u (worker %s)", rank, text->worker);
            return status;
        }
        holders->n_lines++;
        at = stop + 1;
    }
    return WEIR_OK;
}

static weir_status read_texts(weir_holders *holders, const weir_registries *registries,
                              uint32_t n_ranks)
{
    size_t n_lines = 0;
    for (uint32_t rank = 0; rank < n_ranks; rank++) {
        weir_registry_text text = weir_registries_of(registries, rank);
        n_lines += count_lines(&text);
    }
    holders->lines = weir_alloc_zeroed(n_lines, sizeof(*holders->lines));
    holders->workers = weir_alloc_zeroed(n_ranks, sizeof(*holders->workers));
    if (holders->lines == NULL || holders->workers == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = WEIR_OK;
    for (uint32_t rank = 0; rank < n_ranks && status == WEIR_OK; rank++) {
        weir_registry_text text = weir_registries_of(registries, rank);
        status = read_text(holders, &text, rank);
    }
    return status;
}

/* ---- what ranks say of one tensor ------------------------------------------------------------*/

static int compare_words(const void *a, const void *b)
{
    const holder_word *x = a, *y = b;
    int order = strcmp(x->tensor->name, y->tensor->name);
    if (order != 0)
        return order;
    if (x->line->rank != y->line->rank)
        return x->line->rank < y->line->rank ? -1 : 1;
    return (x->line->number > y->line->number) - (x->line->number < y->line->number);
}

static weir_status compare_tensors(const holder_word *a, const holder_word *b)
{
    char first[WEIR_SHAPE_TEXT], second[WEIR_SHAPE_TEXT];
    if (!weir_shape_equal(&a->tensor->global_shape, &b->tensor->global_shape))
        return weir_fail(
            WEIR_ERR_LAYOUT,
            "%s: shape disagreement %s vs %s: rank %u (worker %s), rank %u (worker %s)",
            a->tensor->name, weir_shape_text(&a->tensor->global_shape, first, sizeof(first)),
            weir_shape_text(&b->tensor->global_shape, second, sizeof(second)), a->line->rank,
            a->line->worker, b->line->rank, b->line->worker);
    if (strcmp(a->tensor->dtype, b->tensor->dtype) != 0)
        return weir_fail(
            WEIR_ERR_LAYOUT,
            "%s: dtype disagreement %s vs %s: rank %u (worker %s), rank %u (worker %s)",
            a->tensor->name, a->tensor->dtype, b->tensor->dtype, a->line->rank, a->line->worker,
            b->line->rank, b->line->worker);
    return WEIR_OK;
}

static weir_status add_tensor(weir_holders *holders, const holder_word *word)
{
    weir_tensor_shard *tensor = &holders->tensors[holders->n_tensors++];
    tensor->local.name = word->tensor->name;
    tensor->local.dtype = weir_dtype_from_torch_name(word->tensor->dtype);
    tensor->global_shape = word->tensor->global_shape;
    if (tensor->local.dtype == WEIR_DTYPE_NONE)
        return weir_fail(
            WEIR_ERR_LAYOUT, "%s: rank %u (worker %s) holds it as dtype %s, which there is not",
            word->tensor->name, word->line->rank, word->line->worker, word->tensor->dtype);
    return WEIR_OK;
}

/* `before` is the word before it by name; NULL: there is none. */
static weir_status take_word(weir_holders *holders, const holder_word *word,
                             const holder_word *before)
{
    weir_status status = weir_tensor_descriptor_check(word->tensor);
    if (status != WEIR_OK) {
        weir_error_prefix("rank %u (worker %s)", word->line->rank, word->line->worker);
        return status;
    }
    bool again = before != NULL && strcmp(before->tensor->name, word->tensor->name) == 0;
    return again ? compare_tensors(before, word) : add_tensor(holders, word);
}

static weir_status list_tensors(weir_holders *holders, holder_word *words, size_t n)
{
    weir_status status = WEIR_OK;
    qsort(words, n, sizeof(*words), compare_words);
    for (size_t i = 0; i < n && status == WEIR_OK; i++)
        status = take_word(holders, &words[i], i > 0 ? &words[i - 1] : NULL);
    return status;
}

static weir_status gather_tensors(weir_holders *holders)
{
    size_t n = 0, n_words = 0;
    for (size_t i = 0; i < holders->n_lines; i++)
        n_words += holders->lines[i].registry->n_tensors;
    holder_word *words = weir_alloc_zeroed(n_words, sizeof(*words));
    holders->tensors = weir_alloc_zeroed(n_words, sizeof(*holders->tensors));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (words != NULL && holders->tensors != NULL) {
        for (size_t i = 0; i < holders->n_lines; i++) {
            const holder_line *line = &holders->lines[i];
            for (size_t k = 0; k < line->registry->n_tensors; k++)
                words[n++] = (holder_word){ &line->registry->tensors[k], line };
        }
        status = list_tensors(holders, words, n);
    }
    weir_free(words);
    return status;
}

weir_status weir_holders_open(const weir_registries *registries, uint32_t n_ranks,
                              weir_holders **out)
{
    weir_holders *holders = weir_alloc_zeroed(1, sizeof(*holders));
    if (holders == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = read_texts(holders, registries, n_ranks);
    if (status == WEIR_OK)
        status = gather_tensors(holders);
    if (status != WEIR_OK) {
        weir_holders_close(holders);
        return status;
    }
    *out = holders;
    return WEIR_OK;
}

void weir_holders_close(weir_holders *holders)
{
    if (holders == NULL)
        return;
    for (size_t i = 0; i < holders->n_lines; i++)
        weir_tensor_registry_close(holders->lines[i].registry);
    weir_free(holders->lines);
    weir_free(holders->workers);
    weir_free(holders->tensors);
    weir_free(holders);
}

const weir_tensor_shard *weir_holders_tensors(const weir_holders *holders, size_t *out_n)
{
    *out_n = holders->n_tensors;
    return holders->tensors;
}

/* ---- boxes -----------------------------------------------------------------------------------*/

typedef struct box_list {
    weir_held *boxes;
    size_t n;
} box_list;

static weir_status append(box_list *list, const weir_held *boxes, size_t n)
{
    weir_held *grown = weir_realloc(list->boxes, (list->n + n) * sizeof(*grown));
    if (grown == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (n > 0)
        memcpy(grown + list->n, boxes, n * sizeof(*boxes));
    list->boxes = grown;
    list->n += n;
    return WEIR_OK;
}

/* What all ranks hold by lines of one number: a plan takes one registry of each rank. */
static weir_status add_lines(const weir_holders *holders, const weir_described_model *model,
                             size_t number, weir_publisher *publishers, box_list *list,
                             bool *out_any)
{
    size_t n = 0, n_boxes;
    weir_held *boxes;
    for (size_t i = 0; i < holders->n_lines; i++) {
        const holder_line *line = &holders->lines[i];
        if (line->number == number)
            publishers[n++] = (weir_publisher){ line->worker, line->rank, line->registry };
    }
    *out_any = n > 0;
    if (n == 0)
        return WEIR_OK;
    weir_status status = weir_held_of_registries(model, publishers, n, &boxes, &n_boxes);
    if (status != WEIR_OK)
        return status;
    status = append(list, boxes, n_boxes);
    weir_held_free(boxes);
    return status;
}

weir_status weir_holders_boxes(const weir_holders *holders, const weir_described_model *model,
                               weir_held **out, size_t *out_n)
{
    box_list list = { NULL, 0 };
    bool any = true;
    weir_publisher *publishers = weir_alloc_zeroed(holders->n_lines, sizeof(*publishers));
    weir_status status = publishers != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t number = 0; any && status == WEIR_OK; number++)
        status = add_lines(holders, model, number, publishers, &list, &any);
    if (status == WEIR_OK)
        status = weir_held_check(model, list.boxes, list.n);
    weir_free(publishers);
    if (status != WEIR_OK) {
        weir_free(list.boxes);
        return status;
    }
    *out = list.boxes;
    *out_n = list.n;
    return WEIR_OK;
}
