/* SPDX-License-Identifier: Apache-2.0 */
/* judge.c - the questions to one source. judge_settle.c compares sources with each other. */
#include "directory/judge.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "directory/judge_finding.h"

#define MAX_TARGETS 256u /* that are listed of one source */

/* ---- the wish --------------------------------------------------------------------------------*/

weir_status weir_judge_wish_open(const weir_discover_wish *given, weir_judge_wish *out)
{
    *out = (weir_judge_wish){ .given = given };
    if (given->model == NULL || given->model[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "discover: model is required");
    for (size_t i = 0; i < given->n_targets; i++) {
        if (given->targets[i] == NULL || given->targets[i][0] == '\0')
            return weir_fail(WEIR_ERR_INVALID, "discover: compile target %zu is empty", i);
    }
    if (given->has_min_version && given->has_max_version && given->min_version > given->max_version)
        return weir_fail(WEIR_ERR_INVALID,
                         "discover: no version is at least %" PRIu64 " and at most %" PRIu64,
                         given->min_version, given->max_version);
    if (given->required_metadata == NULL)
        return WEIR_OK;
    out->required = json_loads(given->required_metadata, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(out->required))
        return WEIR_OK;
    weir_judge_wish_close(out);
    return weir_fail(WEIR_ERR_INVALID, "discover: required metadata '%.80s' is no JSON object",
                     given->required_metadata);
}

void weir_judge_wish_close(weir_judge_wish *wish)
{
    json_decref(wish->required);
    wish->required = NULL;
}

/* ---- what it says of itself ------------------------------------------------------------------*/

static const char *status_name(int status)
{
    static const char *const names[] = { "UNKNOWN", "INITIALIZING", "READY", "STALE" };
    return status >= 0 && status < 4 ? names[status] : "no known status";
}

/* Digits alone: no sign, no space. */
static bool read_number(const char *text, uint64_t *out)
{
    uint64_t number = 0;
    for (const char *at = text; *at != '\0'; at++) {
        unsigned digit = (unsigned)(*at - '0');
        if (digit > 9 || number > (UINT64_MAX - digit) / 10)
            return false;
        number = number * 10 + digit;
    }
    *out = number;
    return text[0] != '\0';
}

static bool is_trainer(const char *role)
{
    return strcmp(role, "trainer") == 0;
}

static bool is_replica(const char *role)
{
    return strcmp(role, "inference_replica") == 0;
}

static void judge_role(weir_judge_findings *to, const weir_discover_wish *wish)
{
    const char *role = to->judged->candidate.role;
    bool trainer = wish->roles != WEIR_ROLES_REPLICAS && is_trainer(role);
    bool replica = wish->roles != WEIR_ROLES_TRAINERS && is_replica(role);
    const char *wanted = wish->roles == WEIR_ROLES_TRAINERS   ? "trainer"
                         : wish->roles == WEIR_ROLES_REPLICAS ? "inference_replica"
                                                              : "trainer or inference_replica";
    weir_judge_say(to, "role", trainer || replica, wanted, role);
}

static void judge_rank(weir_judge_findings *to, const weir_discover_wish *wish, const char *said)
{
    uint64_t rank = 0;
    weir_candidate *candidate = &to->judged->candidate;
    candidate->has_rank = said != NULL && read_number(said, &rank) && rank <= UINT32_MAX;
    candidate->rank = candidate->has_rank ? (uint32_t)rank : 0;
    bool good = candidate->has_rank && (!wish->has_rank || candidate->rank == wish->rank);
    weir_judge_say(to, "worker_rank", good,
                   wish->has_rank ? weir_judge_text(to, "%u", wish->rank) : "a number", said);
}

static void judge_version(weir_judge_findings *to, const weir_discover_wish *wish, const char *said)
{
    weir_candidate *candidate = &to->judged->candidate;
    candidate->has_version = said != NULL && read_number(said, &candidate->version);
    bool good = candidate->has_version &&
                (!wish->has_min_version || candidate->version >= wish->min_version) &&
                (!wish->has_max_version || candidate->version <= wish->max_version);
    const char *wanted = "a number";
    if (wish->has_min_version && wish->has_max_version)
        wanted =
            weir_judge_text(to, "%" PRIu64 " to %" PRIu64, wish->min_version, wish->max_version);
    else if (wish->has_min_version)
        wanted = weir_judge_text(to, "at least %" PRIu64, wish->min_version);
    else if (wish->has_max_version)
        wanted = weir_judge_text(to, "at most %" PRIu64, wish->max_version);
    weir_judge_say(to, "training_step", good, wanted, said);
}

static void judge_age(weir_judge_findings *to, const weir_judge_wish *wish)
{
    weir_judged *judged = to->judged;
    int64_t age_ms = wish->now_ms - judged->updated_at_ms;
    unsigned most_ms = wish->given->fresh_ms;
    judged->candidate.age_ms = judged->updated_at_ms <= 0 ? -1 : age_ms > 0 ? age_ms : 0;
    age_ms = judged->candidate.age_ms;
    weir_judge_say(to, "age", most_ms == 0 || (age_ms >= 0 && age_ms <= (int64_t)most_ms),
                   most_ms != 0 ? weir_judge_text(to, "at most %.1f s", most_ms / 1e3) : NULL,
                   age_ms >= 0 ? weir_judge_text(to, "%.1f s", (double)age_ms / 1e3) : NULL);
}

static void judge_equal(weir_judge_findings *to, const char *field, const char *wanted,
                        const char *said)
{
    weir_judge_say(to, field, wanted == NULL || (said != NULL && strcmp(wanted, said) == 0), wanted,
                   said);
}

static void judge_endpoint(weir_judge_findings *to, const weir_discover_wish *wish)
{
    const weir_candidate *candidate = &to->judged->candidate;
    weir_endpoint_kind wanted = wish->endpoint, found = candidate->endpoint_kind;
    weir_judge_say(to, "endpoint", wanted == WEIR_ENDPOINT_ANY || wanted == found,
                   wanted != WEIR_ENDPOINT_ANY ? weir_endpoint_kind_name(wanted) : NULL,
                   found != WEIR_ENDPOINT_ANY ? weir_endpoint_kind_name(found) : NULL);
}

/* ---- its tensors -----------------------------------------------------------------------------*/

static bool is_allowed(const weir_discover_wish *wish, const char *target)
{
    for (size_t i = 0; i < wish->n_targets; i++) {
        if (strcmp(wish->targets[i], target) == 0)
            return true;
    }
    return false;
}

static const char *join(weir_judge_findings *to, const char *const *texts, size_t n,
                        const char *between)
{
    const char *all = n > 0 ? texts[0] : "";
    for (size_t i = 1; i < n; i++)
        all = weir_judge_text(to, "%s%s%s", all, between, texts[i]);
    return all;
}

static void judge_targets(weir_judge_findings *to, const weir_discover_wish *wish,
                          const weir_source_facts *facts)
{
    const weir_tensor_tag *bad = NULL;
    size_t n_bad = 0;
    for (size_t i = 0; i < facts->n_tags; i++) {
        if (is_allowed(wish, facts->tags[i].compile_target))
            continue;
        bad = bad != NULL ? bad : &facts->tags[i];
        n_bad++;
    }
    const char *wanted = join(to, wish->targets, wish->n_targets, " or ");
    if (bad == NULL)
        weir_judge_say(to, "compile_target", true, wanted, to->judged->candidate.targets);
    else
        weir_judge_say_of(to, "compile_target", bad->name, wanted,
                          weir_judge_text(to, "%s (%zu of %zu tensors differ)",
                                          weir_judge_cut(to, bad->compile_target), n_bad,
                                          facts->n_tags));
}

static const char *json_text(weir_judge_findings *to, const json_t *value)
{
    char text[128];
    size_t n =
        json_dumpb(value, text, sizeof(text), JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    return n <= sizeof(text) ? weir_judge_text(to, "%.*s", (int)n, text)
                             : weir_judge_text(to, "%.100s...", text);
}

/* A key that is missing is null. */
static bool has_value(const weir_tensor_tag *tag, const char *key, const json_t *wanted)
{
    const json_t *found = json_object_get(tag->metadata, key);
    return found != NULL ? json_equal(found, wanted) : json_is_null(wanted);
}

static void judge_key(weir_judge_findings *to, const weir_source_facts *facts, const char *key,
                      const json_t *wanted)
{
    const char *field = weir_judge_text(to, "compile_metadata.%s", weir_judge_cut(to, key));
    for (size_t i = 0; i < facts->n_tags; i++) {
        const weir_tensor_tag *tag = &facts->tags[i];
        if (has_value(tag, key, wanted))
            continue;
        const json_t *found = json_object_get(tag->metadata, key);
        weir_judge_say_of(to, field, tag->name, json_text(to, wanted),
                          found != NULL ? json_text(to, found) : "null");
        return;
    }
    weir_judge_say(to, field, true, json_text(to, wanted), json_text(to, wanted));
}

static void judge_metadata(weir_judge_findings *to, json_t *required,
                           const weir_source_facts *facts)
{
    const char *key;
    json_t *value;
    json_object_foreach(required, key, value)
    {
        judge_key(to, facts, key, value);
    }
}

static void judge_registry(weir_judge_findings *to, const weir_judge_wish *wish,
                           const weir_source_facts *facts)
{
    bool asks = wish->given->n_targets > 0 || wish->required != NULL;
    bool good = facts->has_registry && facts->registry_fault == NULL;
    const char *found =
        good ? weir_judge_text(to, "%zu tensors", facts->n_tags) : facts->registry_fault;
    if (!good && facts->in_manifest && found == NULL)
        found = "in the manifest, which cannot be had";
    weir_judge_say(to, "shape_registry", !asks || (good && facts->n_tags > 0),
                   asks ? "one, of at least one tensor" : NULL, found);
    if (!good || facts->n_tags == 0)
        return;
    if (wish->given->n_targets > 0)
        judge_targets(to, wish->given, facts);
    judge_metadata(to, wish->required, facts);
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The compile targets of all tensors. */
static const char *list_targets(weir_judge_findings *to, const weir_source_facts *facts)
{
    const char *targets[MAX_TARGETS];
    size_t n = 0;
    for (size_t i = 0; i < facts->n_tags && n < MAX_TARGETS; i++) {
        const char *target = facts->tags[i].compile_target;
        size_t t = 0;
        while (t < n && strcmp(targets[t], target) != 0)
            t++;
        if (t == n)
            targets[n++] = target;
    }
    qsort(targets, n, sizeof(*targets), compare_texts);
    for (size_t t = 0; t < n; t++)
        targets[t] = weir_judge_cut(to, targets[t]);
    return join(to, targets, n < 16 ? n : 16, ",");
}

/* ---- one source ------------------------------------------------------------------------------*/

static const char *copy_or_empty(weir_judge_findings *to, const char *text)
{
    return text != NULL ? weir_judge_cut(to, text) : "";
}

static const char *host_of(weir_judge_findings *to, const char *endpoint)
{
    const char *colon = strrchr(endpoint, ':');
    if (colon == NULL || colon == endpoint)
        return endpoint;
    bool in_brackets = endpoint[0] == '[' && colon[-1] == ']';
    return weir_judge_text(to, "%.*s", (int)(colon - endpoint) - 2 * in_brackets,
                           endpoint + in_brackets);
}

static void fill_candidate(weir_judge_findings *to, const weir_listed_source *listed,
                           const weir_source_facts *facts)
{
    weir_candidate *candidate = &to->judged->candidate;
    *candidate = (weir_candidate){ .source_id = weir_judge_cut(to, listed->source_id),
                                   .worker_id = weir_judge_cut(to, listed->worker_id),
                                   .model = weir_judge_cut(to, listed->model),
                                   .run = copy_or_empty(to, facts != NULL ? facts->run : NULL),
                                   .role = copy_or_empty(to, facts != NULL ? facts->role : NULL),
                                   .status = facts != NULL ? status_name(listed->status) : "",
                                   .endpoint = "",
                                   .host = "",
                                   .targets = "",
                                   .reason = "",
                                   .findings = to->judged->findings,
                                   .age_ms = -1 };
    if (facts == NULL)
        return;
    candidate->endpoint_kind = facts->endpoint_kind;
    candidate->endpoint = weir_judge_cut(to, facts->endpoint);
    candidate->host = host_of(to, candidate->endpoint);
    candidate->targets = list_targets(to, facts);
    candidate->n_tensors = facts->n_tags > 0 ? facts->n_tags : facts->n_addressed;
}

static void judge_facts(weir_judge_findings *to, const weir_judge_wish *wish,
                        const weir_listed_source *listed, const weir_source_facts *facts)
{
    const weir_discover_wish *given = wish->given;
    weir_candidate *candidate = &to->judged->candidate;
    bool is_live = listed->status == MODEL_EXPRESS__P2P__SOURCE_STATUS__SOURCE_STATUS_READY;
    weir_judge_say(to, "status", is_live, "READY", candidate->status);
    judge_equal(to, "mx_v2", "1", facts->mx_v2);
    judge_equal(to, "run", given->run, facts->run);
    judge_role(to, given);
    judge_rank(to, given, facts->rank);
    judge_version(to, given, facts->step);
    judge_age(to, wish);
    judge_equal(to, "layout_signature", given->layout, facts->layout_signature);
    judge_endpoint(to, given);
    judge_registry(to, wish, facts);
    to->judged->counts =
        (is_live ||
         listed->status == MODEL_EXPRESS__P2P__SOURCE_STATUS__SOURCE_STATUS_INITIALIZING) &&
        candidate->has_rank && candidate->has_version &&
        (is_trainer(candidate->role) || is_replica(candidate->role));
}

weir_status weir_judge_source(const weir_judge_wish *wish, const weir_listed_source *listed,
                              const weir_source_facts *facts, weir_arena *arena, weir_judged *out)
{
    weir_judge_findings to = { out, arena, WEIR_OK };
    *out = (weir_judged){ .updated_at_ms = listed->updated_at_ms };
    if (listed->why_not != NULL)
        facts = NULL;
    fill_candidate(&to, listed, facts);
    judge_equal(&to, "model_name", wish->given->model, listed->model);
    if (facts == NULL)
        weir_judge_say(&to, "metadata", false, "an entry", listed->why_not);
    else
        judge_facts(&to, wish, listed, facts);
    out->counts = out->counts && out->findings[0].ok; /* of this model */
    weir_judge_conclude(&to);
    return to.status;
}
