/* SPDX-License-Identifier: Apache-2.0 */
/* json_text.c - objects and lists of strings and numbers, escaped as the common writers do: the
 * two-letter forms where JSON has them, \u00XX for other control characters, everything else as it
 * is. */
#include "directory/json_text.h"

#include <stdio.h>
#include <string.h>

static void put(weir_json_text *json, char c)
{
    if (json->n_used < json->n_bytes)
        json->buffer[json->n_used] = c;
    json->n_used++;
}

static void put_text(weir_json_text *json, const char *text)
{
    for (; *text != '\0'; text++)
        put(json, *text);
}

static void put_quoted(weir_json_text *json, const char *text)
{
    static const char plain[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
    put(json, '"');
    for (; *text != '\0'; text++) {
        const char *at = strchr(plain, *text);
        if (at != NULL) {
            put(json, '\\');
            put(json, letters[at - plain]);
        } else if ((unsigned char)*text < 0x20) {
            char code[8];
            snprintf(code, sizeof(code), "\\u%04x", (unsigned char)*text);
            put_text(json, code);
        } else if (json->in_lower_case && *text >= 'A' && *text <= 'Z') {
            put(json, (char)(*text - 'A' + 'a'));
        } else {
            put(json, *text);
        }
    }
    put(json, '"');
}

static void put_key(weir_json_text *json, const char *key)
{
    if (json->has_item)
        put(json, ',');
    json->has_item = true;
    if (key == NULL)
        return;
    put_quoted(json, key);
    put(json, ':');
}

void weir_json_begin(weir_json_text *json, char *buffer, size_t n_bytes)
{
    *json = (weir_json_text){ .buffer = buffer, .n_bytes = n_bytes };
}

void weir_json_open(weir_json_text *json, const char *key)
{
    put_key(json, key);
    put(json, '{');
    json->has_item = false;
}

void weir_json_close(weir_json_text *json)
{
    put(json, '}');
    json->has_item = true;
}

void weir_json_open_list(weir_json_text *json, const char *key)
{
    put_key(json, key);
    put(json, '[');
    json->has_item = false;
}

void weir_json_close_list(weir_json_text *json)
{
    put(json, ']');
    json->has_item = true;
}

void weir_json_string(weir_json_text *json, const char *key, const char *value)
{
    put_key(json, key);
    put_quoted(json, value);
}

void weir_json_number(weir_json_text *json, const char *key, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof(digits), "%llu", (unsigned long long)value);
    put_key(json, key);
    put_text(json, digits);
}

void weir_json_millionths(weir_json_text *json, const char *key, uint64_t value)
{
    char digits[32];
    snprintf(digits, sizeof(digits), "%llu.%06llu", (unsigned long long)(value / 1000000),
             (unsigned long long)(value % 1000000));
    put_key(json, key);
    put_text(json, digits);
}

void weir_json_null(weir_json_text *json, const char *key)
{
    put_key(json, key);
    put_text(json, "null");
}

void weir_json_bool(weir_json_text *json, const char *key, bool value)
{
    put_key(json, key);
    put_text(json, value ? "true" : "false");
}

bool weir_json_end(weir_json_text *json)
{
    bool fits = json->n_used < json->n_bytes;
    if (json->n_bytes != 0)
        json->buffer[fits ? json->n_used : json->n_bytes - 1] = '\0';
    return fits;
}
