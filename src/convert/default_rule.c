/* SPDX-License-Identifier: Apache-2.0 */
/* default_rule.c - which conversion an engine's quantization_config asks for.
 *
 * An ordered list of rules, the first that matches wins: fp8_128x128 before per-channel, so a
 * config that both would take is block-wise.
 */
#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "convert/registry.h"
#include "weir/checkpoint.h"

typedef struct default_rule {
    weir_default_rule_fn matches;
    void *context;
    const char *conversion;
} default_rule;

/* Long lists of modules would push the list of conversions out of the error line. */
#define CONFIG_TEXT 400

static bool string_is(const weir_config *config, const char *key, const char *value)
{
    const char *text = weir_config_string(config, key);
    return text != NULL && strcmp(text, value) == 0;
}

/* The length of weight_block_size; 0 when it is missing, null or empty, -1 when unreadable. */
static int read_block_size(const weir_config *config, int64_t block[2])
{
    if (!weir_config_has(config, "weight_block_size"))
        return 0;
    return weir_config_ints(config, "weight_block_size", block, 2);
}

static int is_fp8_128x128(void *context, const weir_config *config)
{
    (void)context;
    int64_t block[2] = { 0, 0 };
    if (!string_is(config, "quant_method", "fp8"))
        return 0;
    int n = read_block_size(config, block);
    if (n < 0)
        return -1;
    return n == 2 && block[0] == 128 && block[1] == 128;
}

static int is_fp8_per_channel(void *context, const weir_config *config)
{
    (void)context;
    int64_t block[2];
    if (!string_is(config, "quant_method", "fp8"))
        return 0;
    if (string_is(config, "quant_format", "cutlass"))
        return 1;
    return read_block_size(config, block) == 0 && string_is(config, "activation_scheme", "dynamic");
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects what follows */
static default_rule first_rules[16] = {
    { is_fp8_128x128, NULL, "fp8_128x128" },
    { is_fp8_per_channel, NULL, "cutlass_fp8_e4m3_per_channel" },
};
static default_rule *rules = first_rules;
static size_t n_rules = 2, n_room = sizeof(first_rules) / sizeof(first_rules[0]);

static weir_status grow(void)
{
    default_rule *more = weir_alloc(2 * n_room * sizeof(*rules));
    if (more == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(more, rules, n_rules * sizeof(*rules));
    if (rules != first_rules)
        weir_free(rules);
    rules = more;
    n_room *= 2;
    return WEIR_OK;
}

weir_status weir_default_rule_register(weir_default_rule_fn matches, void *context,
                                       const char *conversion, bool insert_first)
{
    if (matches == NULL || conversion == NULL)
        return weir_fail(WEIR_ERR_INVALID, "a default rule needs a function and a conversion");
    pthread_mutex_lock(&lock);
    weir_status status = n_rules == n_room ? grow() : WEIR_OK;
    if (status == WEIR_OK) {
        size_t at = insert_first ? 0 : n_rules;
        memmove(rules + at + 1, rules + at, (n_rules - at) * sizeof(*rules));
        rules[at] = (default_rule){ matches, context, conversion };
        n_rules++;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

/* A copy, because rules may call Weir and must not run under the lock. */
static default_rule *copy_rules(size_t *out_n)
{
    pthread_mutex_lock(&lock);
    default_rule *copy = weir_alloc(n_rules * sizeof(*rules));
    if (copy != NULL)
        memcpy(copy, rules, n_rules * sizeof(*rules));
    *out_n = n_rules;
    pthread_mutex_unlock(&lock);
    return copy;
}

static weir_status unsupported(const weir_config *quantization)
{
    char names[400];
    weir_conversion_list(names, sizeof(names));
    char *text = quantization != NULL ? weir_config_text(quantization) : NULL;
    bool cut = text != NULL && strlen(text) > CONFIG_TEXT;
    weir_status status =
        weir_fail(WEIR_ERR_UNSUPPORTED,
                  "unsupported inference quantization: %.*s%s; registered conversions: %s; "
                  "register a new rule via weir_default_rule_register",
                  CONFIG_TEXT, text != NULL ? text : "not an object", cut ? "..." : "", names);
    weir_string_free(text);
    return status;
}

/* Models with several towers may keep it among the language model's keys, where engines look too.
 */
static const weir_config *holder_of_quantization(const weir_config *config)
{
    if (weir_config_has(config, "quantization_config"))
        return config;
    const weir_config *text = weir_config_object(config, "text_config");
    return weir_config_has(text, "quantization_config") ? text : NULL;
}

weir_status weir_conversion_select(const weir_config *config, const weir_conversion **out)
{
    config = holder_of_quantization(config);
    if (config == NULL)
        return weir_conversion_get("bf16_cast", out);
    const weir_config *quantization = weir_config_object(config, "quantization_config");
    if (quantization == NULL)
        return unsupported(NULL);
    size_t n;
    default_rule *snapshot = copy_rules(&n);
    if (snapshot == NULL)
        return WEIR_ERR_NO_MEMORY;
    const char *name = NULL;
    for (size_t i = 0; name == NULL && i < n; i++) {
        if (snapshot[i].matches(snapshot[i].context, quantization) > 0)
            name = snapshot[i].conversion;
    }
    weir_free(snapshot);
    return name != NULL ? weir_conversion_get(name, out) : unsupported(quantization);
}

weir_status weir_conversion_resolve(const char *name, const char *default_name,
                                    const weir_conversion **out)
{
    return weir_conversion_get(name != NULL && name[0] != '\0' ? name : default_name, out);
}
