/* SPDX-License-Identifier: Apache-2.0 */
/* json_text.h - writes compact JSON into a fixed buffer, without the heap.
 *
 * For the few small documents that a refit sends each time. Overflow is remembered, not written:
 * look at it once, at the end. Reading is jansson's work. */
#ifndef WEIR_DIRECTORY_JSON_TEXT_H
#define WEIR_DIRECTORY_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct weir_json_text {
    char *buffer;
    size_t n_bytes, n_used; /* n_used goes on counting beyond n_bytes */
    bool in_lower_case;     /* of strings */
    bool has_item;          /* the open object has a member already */
} weir_json_text;

void weir_json_begin(weir_json_text *json, char *buffer, size_t n_bytes);
void weir_json_open(weir_json_text *json, const char *key); /* key NULL: the document */
void weir_json_close(weir_json_text *json);
void weir_json_string(weir_json_text *json, const char *key, const char *value);
void weir_json_number(weir_json_text *json, const char *key, uint64_t value);
/* NUL-terminates. False when it did not fit. */
bool weir_json_end(weir_json_text *json);

#endif
