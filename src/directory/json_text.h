/* SPDX-License-Identifier: Apache-2.0 */
/* json_text.h - writes compact JSON into a fixed buffer, without the heap.
 *
 * For the few small documents that a refit sends each time, and for the long one that people watch:
 * written once into no buffer to be measured, then into one that fits. Overflow is remembered, not
 * written: look at it once, at the end. Reading is jansson's work. */
#ifndef WEIR_DIRECTORY_JSON_TEXT_H
#define WEIR_DIRECTORY_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct weir_json_text {
    char *buffer;           /* NULL with n_bytes 0: only counts */
    size_t n_bytes, n_used; /* n_used goes on counting beyond n_bytes */
    bool in_lower_case;     /* of strings */
    bool has_item;          /* the open object has a member already */
} weir_json_text;

void weir_json_begin(weir_json_text *json, char *buffer, size_t n_bytes);
/* key NULL: the document, or an item of a list; as below. */
void weir_json_open(weir_json_text *json, const char *key);
void weir_json_close(weir_json_text *json);
void weir_json_open_list(weir_json_text *json, const char *key);
void weir_json_close_list(weir_json_text *json);
void weir_json_string(weir_json_text *json, const char *key, const char *value);
void weir_json_number(weir_json_text *json, const char *key, uint64_t value);
/* 1500000 is 1.500000. */
void weir_json_millionths(weir_json_text *json, const char *key, uint64_t value);
void weir_json_bool(weir_json_text *json, const char *key, bool value);
void weir_json_null(weir_json_text *json, const char *key);
/* NUL-terminates. False when it did not fit. */
bool weir_json_end(weir_json_text *json);

#endif
