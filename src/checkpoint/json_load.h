/* SPDX-License-Identifier: Apache-2.0 */
/* json_load.h - one JSON object from bytes that nobody vouches for. */
#ifndef WEIR_CHECKPOINT_JSON_LOAD_H
#define WEIR_CHECKPOINT_JSON_LOAD_H

#include <jansson.h>
#include <stddef.h>

#include "weir/status.h"

/* The longest text taken: the limit that the safetensors format sets for its header. */
#define WEIR_JSON_MAX_BYTES 100000000u

/* Gives *out; drop it with json_decref(). ERR_FORMAT "WHAT: line 3 column 7: …" for anything but
 * one JSON object of valid UTF-8 without duplicate keys, nested no deeper than jansson allows
 * (JSON_PARSER_MAX_DEPTH, 2048), its integers within 64 bits. */
weir_status weir_json_load(const void *text, size_t n_bytes, const char *what, json_t **out);

#endif
