/* SPDX-License-Identifier: Apache-2.0 */
/* run_setup.c - what parts do not say themselves: from the field that their row names, else from
 * each other's sizes, else the default.
 *
 * Nothing that is written is overwritten: where two contradict each other, the rules say so.
 */
#include <string.h>

#include "config/run_state.h"

/* Whether a value is there, written or taken over, or would be if it were right. An inference block
 * that is not there gives no name. */
static bool can_give(weir_run_config *config, const weir_run_row *row)
{
    if (strncmp(row->path, "inference.", 10) == 0 && !config->settings.inference.present)
        return false;
    const weir_run_state *state = weir_run_state_of(config, row->path);
    return state->node != NULL || state->refused;
}

static const weir_run_row *giver_of(weir_run_config *config, const weir_run_row *row)
{
    for (const char *from = row->from; from != NULL && *from != '\0';) {
        size_t n_bytes = strcspn(from, "|");
        const weir_run_row *giver = weir_run_row_of_bytes(from, n_bytes);
        if (can_give(config, giver))
            return giver;
        from += n_bytes + (from[n_bytes] == '|');
    }
    return NULL;
}

static size_t member_bytes(const weir_run_row *row)
{
    switch (row->kind) {
    case WEIR_RUN_TEXT:
        return sizeof(const char *);
    case WEIR_RUN_LIST:
        return sizeof(weir_run_texts);
    case WEIR_RUN_INTEGER:
        return sizeof(uint32_t);
    case WEIR_RUN_BOOLEAN:
        return sizeof(bool);
    case WEIR_RUN_CHOICE:
        return sizeof(int);
    case WEIR_RUN_BLOCK:
        break;
    }
    return 0;
}

static void complete(weir_run_config *config, const weir_run_row *row)
{
    weir_run_state *state = weir_run_state_of(config, row->path);
    if (state->written && !state->refused)
        return;
    const weir_run_row *giver = state->refused ? NULL : giver_of(config, row);
    if (giver != NULL) {
        const weir_run_state *given = weir_run_state_of(config, giver->path);
        memcpy(weir_run_member(config, row), weir_run_member(config, giver), member_bytes(row));
        state->node = given->node;
        state->origin = given->origin;
        state->refused = given->refused;
        return;
    }
    if (row->default_value != NULL)
        weir_run_store(config, row, row->default_value);
}

static uint32_t n_workers_of(const weir_run_settings *settings)
{
    if (settings->deployment.type == WEIR_RUN_MULTI_NODE)
        return settings->deployment.gpus_per_node * settings->deployment.num_infer_nodes;
    if (!settings->inference.present)
        return 1;
    return (uint32_t)settings->orchestrator.servers.n_items * settings->inference.tp *
           settings->inference.dp;
}

void weir_run_set_up(weir_run_config *config)
{
    size_t n_rows;
    const weir_run_row *rows = weir_run_rows(&n_rows);
    for (size_t i = 0; i < n_rows; i++)
        if (rows[i].kind != WEIR_RUN_BLOCK)
            complete(config, &rows[i]);
    if (config->out_of_memory)
        return;
    weir_run_settings *settings = &config->settings;
    weir_run_broadcast *trainer = &settings->trainer.broadcast;
    if (!weir_run_state_of(config, "trainer.weight_broadcast.inference_world_size")->written)
        trainer->inference_world_size = n_workers_of(settings);
    if (config->trainer_host != NULL)
        settings->orchestrator.broadcast.host = config->trainer_host;
    bool is_called = config->trainer_host != NULL; /* from elsewhere */
    if ((is_called || settings->deployment.type == WEIR_RUN_MULTI_NODE) &&
        !weir_run_state_of(config, "trainer.weight_broadcast.host")->written)
        trainer->host = "0.0.0.0";
}
