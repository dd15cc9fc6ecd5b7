/* SPDX-License-Identifier: Apache-2.0 */
/* env.c - reads the environment through one table, so that `weir info` can print it whole. */
#include "base/env.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "weir/weir.h"

static const weir_env_info table[WEIR_ENV_COUNT] = {
#define ROW(id, name, type, def, help) { name, type, def, help, NULL },
    WEIR_ENV_LIST(ROW)
#undef ROW
};

const char *weir_env_string(weir_env_id id)
{
    const char *value = getenv(table[id].name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

unsigned weir_env_unsigned(weir_env_id id, unsigned fallback)
{
    const char *value = weir_env_string(id);
    if (value == NULL || value[0] < '0' || value[0] > '9')
        return fallback;
    char *end;
    unsigned long number = strtoul(value, &end, 10);
    return *end == '\0' && number <= 1000000000ul ? (unsigned)number : fallback;
}

const char *weir_env_foreign(const char *name)
{
    return getenv(name);
}

bool weir_env_foreign_is_set(const char *name)
{
    return getenv(name) != NULL;
}

bool weir_env_foreign_is(const char *name, const char *value)
{
    const char *own = getenv(name);
    return own != NULL && strcmp(own, value) == 0;
}

bool weir_env_list_has(weir_env_id id, const char *word)
{
    const char *list = weir_env_string(id);
    size_t n = strlen(word);
    while (list != NULL && *list != '\0') {
        size_t length = strcspn(list, ",");
        if (length == n && strncasecmp(list, word, n) == 0)
            return true;
        list += length + (list[length] == ',');
    }
    return false;
}

size_t weir_env_table(weir_env_info *infos, size_t n_infos)
{
    for (size_t i = 0; i < n_infos && i < WEIR_ENV_COUNT; i++) {
        infos[i] = table[i];
        infos[i].value = weir_env_string((weir_env_id)i);
    }
    return WEIR_ENV_COUNT;
}
