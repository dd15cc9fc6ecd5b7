/* SPDX-License-Identifier: Apache-2.0 */
/* Any text as a config.json, read in every way, and as the index of a sharded checkpoint. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/shard_index.h"
#include "weir/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static const char *const keys[] = { "a", "quantization_config", "weight_block_size",
                                    "architectures", "n" };

static void read_all(const weir_config *config)
{
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        int64_t integers[2];
        double number;
        bool flag;
        (void)weir_config_has(config, keys[i]);
        (void)weir_config_int(config, keys[i], integers);
        (void)weir_config_bool(config, keys[i], &flag);
        (void)weir_config_number(config, keys[i], &number);
        (void)weir_config_string(config, keys[i]);
        (void)weir_config_ints(config, keys[i], integers, 2);
        (void)weir_config_string_at(config, keys[i], 1);
        const weir_config *child = weir_config_object(config, keys[i]);
        if (child != NULL)
            (void)weir_config_has(child, keys[i]);
    }
}

/* The text of a config is a config with the same text. */
static void check_text(const weir_config *config)
{
    weir_config *again = NULL;
    char *text = weir_config_text(config);
    if (text == NULL || weir_config_parse(text, "again", &again) != WEIR_OK)
        abort();
    char *second = weir_config_text(again);
    if (second == NULL || strcmp(text, second) != 0)
        abort();
    weir_config_close(again);
    weir_string_free(second);
    weir_string_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    char *text = malloc(n_bytes + 1);
    if (text == NULL)
        return 0;
    memcpy(text, bytes, n_bytes);
    text[n_bytes] = '\0';
    weir_config *config;
    if (weir_config_parse(text, "fuzz", &config) == WEIR_OK) {
        read_all(config);
        check_text(config);
        weir_config_close(config);
    }
    free(text);
    weir_shard_index index;
    if (weir_shard_index_parse(bytes, n_bytes, "fuzz", &index) == WEIR_OK)
        weir_shard_index_free(&index);
    return 0;
}
