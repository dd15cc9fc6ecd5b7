/* SPDX-License-Identifier: Apache-2.0 */
/* plan_list.c - one worker's copies, or one rank's share, line by line. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "plan_report.h"

#define NAME_BYTES 512

static const char *output_name(const weir_plan_model *model, const weir_share_shard *shard,
                               char buffer[NAME_BYTES])
{
    const weir_fleet_tensor *tensor = &model->tensors[shard->tensor];
    if (weir_conversion_output_name(tensor->conversion, shard->output, tensor->name, false, buffer,
                                    NAME_BYTES) != WEIR_OK)
        return tensor->name;
    return buffer;
}

static json_t *numbers_json(const uint64_t *numbers, uint32_t n)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer((json_int_t)numbers[i]));
    return list;
}

/* WEIR_ANY is null. */
static json_t *index_json(uint32_t index)
{
    return index == WEIR_ANY ? json_null() : json_integer(index);
}

static json_t *shard_json(const weir_plan_model *model, uint32_t rank,
                          const weir_share_shard *shard)
{
    char name[NAME_BYTES];
    const weir_mesh_place *place = &shard->place;
    return json_pack(
        "{s:i, s:s, s:o, s:o, s:o, s:I, s:{s:o, s:o, s:o}}", "rank", (int)rank, "name",
        output_name(model, shard, name), "shape", numbers_json(shard->shape.dim, shard->shape.rank),
        "lo", numbers_json(shard->box.lo, shard->box.rank), "hi",
        numbers_json(shard->box.hi, shard->box.rank), "bytes", (json_int_t)shard->n_bytes, "place",
        "stage", index_json(place->stage), "d", index_json(place->d), "t", index_json(place->t));
}

static void print_index(const char *label, uint32_t index)
{
    if (index != WEIR_ANY)
        printf(" %s=%u", label, index);
}

/* "rank 3     917.50 kB  model.layers.0.…weight [0:128, 0:7168]  for stage=0 t=1" */
static void print_shard(const weir_plan_model *model, uint32_t rank, const weir_share_shard *shard)
{
    char name[NAME_BYTES];
    printf("rank %-5u %10s  %s [", rank, weir_cli_bytes_text(shard->n_bytes).text,
           output_name(model, shard, name));
    for (uint32_t i = 0; i < shard->box.rank; i++)
        printf("%s%" PRIu64 ":%" PRIu64, i > 0 ? ", " : "", shard->box.lo[i], shard->box.hi[i]);
    printf("]  for");
    print_index("stage", shard->place.stage);
    print_index("d", shard->place.d);
    print_index("t", shard->place.t);
    putchar('\n');
}

/* Prints a shard, or puts it into the list. */
static void put_shard(const weir_plan_model *model, uint32_t rank, const weir_share_shard *shard,
                      json_t *list)
{
    if (list != NULL)
        json_array_append_new(list, shard_json(model, rank, shard));
    else
        print_shard(model, rank, shard);
}

int weir_plan_list_worker(const weir_plan_model *model, uint32_t worker, bool as_json)
{
    weir_mesh_place place = weir_replica_mesh_place(&model->replica, worker);
    json_t *list = as_json ? json_array() : NULL;
    uint64_t n_bytes = 0, n_copies = 0;
    for (uint32_t rank = 0; rank < model->n_ranks; rank++) {
        weir_share *share;
        if (weir_plan_model_share(model, rank, &share) != WEIR_OK) {
            json_decref(list);
            return weir_cli_fail();
        }
        for (size_t i = 0; i < share->n_shards; i++) {
            const weir_share_shard *shard = &share->shards[i];
            if (shard->n_bytes == 0 || !weir_mesh_place_matches(&shard->place, &place))
                continue;
            put_shard(model, rank, shard, list);
            n_bytes += shard->n_bytes;
            n_copies++;
        }
        weir_share_free(share);
    }
    if (as_json)
        return weir_cli_print_json(json_pack("{s:i, s:I, s:o}", "worker", (int)worker, "bytes",
                                             (json_int_t)n_bytes, "copies", list));
    printf("worker %u reads %" PRIu64 " copies, %s\n", worker, n_copies,
           weir_cli_bytes_text(n_bytes).text);
    return WEIR_EXIT_OK;
}

/* ---- one rank --------------------------------------------------------------------------------*/

static json_t *loans_json(const weir_share_loan *loans, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:i, s:I}", "rank", (int)loans[i].rank, "bytes",
                                              (json_int_t)loans[i].n_bytes));
    return list;
}

static uint64_t print_loans(const char *line, const weir_share_loan *loans, size_t n)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        printf("rank %-5u %10s  %s\n", loans[i].rank, weir_cli_bytes_text(loans[i].n_bytes).text,
               line);
        n_bytes += loans[i].n_bytes;
    }
    return n_bytes;
}

static void print_share(const weir_plan_model *model, uint32_t rank, const weir_share *share)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < share->n_shards; i++) {
        print_shard(model, rank, &share->shards[i]);
        n_bytes += share->shards[i].n_bytes;
    }
    uint64_t lent = print_loans("is lent what borders need", share->lends, share->n_lends);
    uint64_t borrowed = print_loans("lends what borders need", share->borrows, share->n_borrows);
    printf("rank %u publishes %zu shards, ", rank, share->n_shards);
    printf("%s, by %zu conversions; ", weir_cli_bytes_text(n_bytes).text, share->n_jobs);
    printf("lends %s, ", weir_cli_bytes_text(lent).text);
    printf("borrows %s\n", weir_cli_bytes_text(borrowed).text);
}

static int print_share_json(const weir_plan_model *model, uint32_t rank, const weir_share *share)
{
    json_t *shards = json_array();
    for (size_t i = 0; i < share->n_shards; i++)
        put_shard(model, rank, &share->shards[i], shards);
    return weir_cli_print_json(json_pack("{s:i, s:I, s:o, s:o, s:o}", "rank", (int)rank,
                                         "conversions", (json_int_t)share->n_jobs, "shards", shards,
                                         "lends", loans_json(share->lends, share->n_lends),
                                         "borrows", loans_json(share->borrows, share->n_borrows)));
}

int weir_plan_list_rank(const weir_plan_model *model, uint32_t rank, bool as_json)
{
    weir_share *share;
    int code = WEIR_EXIT_OK;
    if (weir_plan_model_share(model, rank, &share) != WEIR_OK)
        return weir_cli_fail();
    if (as_json)
        code = print_share_json(model, rank, share);
    else
        print_share(model, rank, share);
    weir_share_free(share);
    return code;
}
