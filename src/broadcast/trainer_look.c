/* SPDX-License-Identifier: Apache-2.0 */
/* trainer_look.c - what DirectoryService.GetFleet says, as far as an inference server asks. */
#include "broadcast/trainer_look.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static bool is_of(const json_t *object, const char *name, const char *wanted)
{
    return strcmp(text_of(object, name), wanted) == 0;
}

/* Once each; those beyond the room are left out. */
static void name_other(weir_trainer_sight *sight, const char *model)
{
    size_t used = strlen(sight->others), n = strlen(model);
    if (n == 0 || used + n + 3 > sizeof(sight->others) || strstr(sight->others, model) != NULL)
        return;
    snprintf(sight->others + used, sizeof(sight->others) - used, "%s%s", used > 0 ? ", " : "",
             model);
}

/* Workers that are registered, and groups of sources. */
static void find_trainers(const json_t *list, const char *model, weir_trainer_sight *sight)
{
    size_t i;
    const json_t *item;
    json_array_foreach(list, i, item)
    {
        if (!is_of(item, "role", "trainer") || json_is_true(json_object_get(item, "superseded")) ||
            is_of(item, "status", "STALE"))
            continue;
        if (is_of(item, "model", model))
            sight->has_trainer = true;
        else
            name_other(sight, text_of(item, "model"));
    }
}

/* Whose directory it is, where it is one trainer's own: known before that has registered. */
static void find_owner(const json_t *owner, const char *model, weir_trainer_sight *sight)
{
    const json_t *n_workers = json_object_get(owner, "inference_workers");
    if (!json_is_object(owner))
        return;
    if (!is_of(owner, "model", model)) {
        name_other(sight, text_of(owner, "model"));
        return;
    }
    sight->has_trainer = sight->says_run = true;
    snprintf(sight->run, sizeof(sight->run), "%s", text_of(owner, "run"));
    if (json_is_integer(n_workers) && json_integer_value(n_workers) > 0 &&
        json_integer_value(n_workers) <= INT32_MAX)
        sight->n_workers = (uint32_t)json_integer_value(n_workers);
}

/* Attempts at the version that is wanted. */
typedef struct wanted_attempts {
    bool any_open, any_aborted;
} wanted_attempts;

/* An attempt at a version that stands, or is about to. */
static void see_version(const json_t *item, uint64_t number, const weir_trainer_wish *wish,
                        weir_trainer_sight *sight, wanted_attempts *wanted)
{
    bool is_ready = is_of(item, "state", "READY"),
         is_wanted = wish->wants && number == wish->wanted;
    if (!is_ready && !is_of(item, "state", "STAGING")) {
        wanted->any_aborted |= is_wanted && is_of(item, "state", "ABORTED");
        return;
    }
    wanted->any_open |= is_wanted;
    if (wish->holds && number == wish->held && !is_of(item, "uid", wish->held_uid))
        sight->is_made_anew = true;
    if (!is_ready)
        return;
    if (!sight->has_newest || number > sight->newest)
        sight->newest = number;
    sight->has_newest = true;
}

static void find_versions(const json_t *versions, const weir_trainer_wish *wish,
                          weir_trainer_sight *sight)
{
    size_t i;
    const json_t *item;
    wanted_attempts wanted = { false, false };
    json_array_foreach(versions, i, item)
    {
        const json_t *number = json_object_get(item, "version");
        if (is_of(item, "model", wish->model) && is_of(item, "run", wish->run) &&
            !json_is_true(json_object_get(item, "taken_back")) && json_is_integer(number) &&
            json_integer_value(number) >= 0)
            see_version(item, (uint64_t)json_integer_value(number), wish, sight, &wanted);
    }
    sight->is_aborted = wanted.any_aborted && !wanted.any_open;
}

weir_status weir_trainer_sight_read(const char *json, const weir_trainer_wish *wish,
                                    weir_trainer_sight *out)
{
    weir_trainer_sight sight = { .is_told = true };
    json_t *fleet = json_loads(json, 0, NULL);
    if (!json_is_object(fleet)) {
        json_decref(fleet);
        return weir_fail(WEIR_ERR_FORMAT, "the directory's fleet is no JSON object: '%.40s'", json);
    }
    const json_t *revision = json_object_get(fleet, "revision");
    if (json_is_integer(revision) && json_integer_value(revision) > 0)
        sight.revision = (uint64_t)json_integer_value(revision);
    find_trainers(json_object_get(fleet, "workers"), wish->model, &sight);
    find_trainers(json_object_get(fleet, "groups"), wish->model, &sight);
    find_owner(json_object_get(fleet, "trainer"), wish->model, &sight);
    find_versions(json_object_get(fleet, "versions"), wish, &sight);
    json_decref(fleet);
    *out = sight;
    return WEIR_OK;
}

weir_status weir_trainer_ask(weir_directory_client *client, const weir_trainer_wish *wish,
                             uint64_t after_revision, unsigned timeout_ms, weir_trainer_sight *out)
{
    const char *json = NULL;
    const weir_fleet_request request = { .model = wish->model,
                                         .after_revision = after_revision,
                                         .timeout_ms = timeout_ms };
    weir_status status = weir_directory_get_fleet(client, &request, &json);
    if (status == WEIR_ERR_UNSUPPORTED) {
        *out = (weir_trainer_sight){ .is_told = false };
        return WEIR_OK;
    }
    return status == WEIR_OK ? weir_trainer_sight_read(json != NULL ? json : "", wish, out)
                             : status;
}

weir_status weir_trainer_look(weir_directory_client *client, const char *model, const char *run,
                              uint64_t after_revision, unsigned timeout_ms, weir_trainer_sight *out)
{
    const weir_trainer_wish wish = { .model = model, .run = run };
    return weir_trainer_ask(client, &wish, after_revision, timeout_ms, out);
}
