/* SPDX-License-Identifier: Apache-2.0 */
/* plan_rates.c - reads what --simulate is given. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plan_forecast.h"

#define LEAST_RATE 1e-6 /* GB/s: 1 kB/s */
#define MOST 1e9        /* of any number */

typedef enum rate_key {
    KEY_LINK,
    KEY_HOST,
    KEY_LATENCY,
    KEY_CONVERT,
    KEY_WINDOW,
    KEY_GROUPS,
    N_KEYS
} rate_key;

typedef struct key_row {
    const char *name;
    double least; /* when it is given */
    bool whole;
} key_row;

static const key_row keys[N_KEYS] = {
    [KEY_LINK] = { "link_gb_per_s", LEAST_RATE, false },
    [KEY_HOST] = { "host_gb_per_s", LEAST_RATE, false },
    [KEY_LATENCY] = { "latency_us", 0, false },
    [KEY_CONVERT] = { "convert_gb_per_s", LEAST_RATE, false },
    [KEY_WINDOW] = { "window", 1, true },
    [KEY_GROUPS] = { "groups", 1, true },
};

static rate_key find_key(const char *token, size_t n)
{
    const char *equals = memchr(token, '=', n);
    size_t n_name = equals != NULL ? (size_t)(equals - token) : n;
    rate_key key = 0;
    while (key < N_KEYS &&
           (strlen(keys[key].name) != n_name || memcmp(keys[key].name, token, n_name) != 0))
        key++;
    return key;
}

/* The number behind the '='. */
static bool read_number(const char *token, size_t n, const key_row *key, double *out)
{
    char text[32], *end;
    size_t n_key = strlen(key->name) + 1;
    if (n <= n_key || n - n_key >= sizeof(text) || token[n_key] < '0' || token[n_key] > '9')
        return false;
    memcpy(text, token + n_key, n - n_key);
    text[n - n_key] = '\0';
    *out = strtod(text, &end);
    return *end == '\0' && *out >= key->least && *out <= MOST &&
           (!key->whole || *out == floor(*out));
}

static bool read_token(const char *verb, const char *token, size_t n, double *numbers)
{
    rate_key key = find_key(token, n);
    int shown = n < 100 ? (int)n : 100;
    if (key == N_KEYS)
        weir_cli_usage_error(verb,
                             "--simulate: unknown key in '%.*s'; it takes link_gb_per_s, "
                             "host_gb_per_s, latency_us, convert_gb_per_s, window, groups",
                             shown, token);
    else if (!isnan(numbers[key]))
        weir_cli_usage_error(verb, "--simulate: %s is there twice", keys[key].name);
    else if (!read_number(token, n, &keys[key], &numbers[key]))
        weir_cli_usage_error(verb, "--simulate: '%.*s' is not %s=%s from %g to %g", shown, token,
                             keys[key].name, keys[key].whole ? "WHOLE NUMBER" : "NUMBER",
                             keys[key].least, MOST);
    else
        return true;
    return false;
}

bool weir_forecast_read(const char *verb, const char *text, weir_forecast_rates *out)
{
    double numbers[N_KEYS];
    for (int key = 0; key < N_KEYS; key++)
        numbers[key] = NAN;
    for (const char *token = text; *token != '\0';) {
        size_t n = strcspn(token, ",");
        if (!read_token(verb, token, n, numbers))
            return false;
        token += n + (token[n] == ',');
    }
    if (isnan(numbers[KEY_LINK])) {
        weir_cli_usage_error(verb, "--simulate: link_gb_per_s=NUMBER is missing");
        return false;
    }
    for (int key = 0; key < N_KEYS; key++)
        numbers[key] = isnan(numbers[key]) ? 0 : numbers[key];
    *out = (weir_forecast_rates){ .link_gb_per_s = numbers[KEY_LINK],
                                  .host_gb_per_s = numbers[KEY_HOST],
                                  .latency_us = numbers[KEY_LATENCY],
                                  .convert_gb_per_s = numbers[KEY_CONVERT],
                                  .window = (uint32_t)numbers[KEY_WINDOW],
                                  .groups = (uint32_t)numbers[KEY_GROUPS] };
    return true;
}
