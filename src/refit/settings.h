/* SPDX-License-Identifier: Apache-2.0 */
/* settings.h - what trainer and replica are both told about the model: which family, layout and
 * conversion, from which config.json, over which transport. Strings are copies; NULL: not given.
 */
#ifndef WEIR_REFIT_SETTINGS_H
#define WEIR_REFIT_SETTINGS_H

#include "weir/checkpoint.h"

typedef struct weir_settings {
    char *family, *layout, *conversion, *transport;
    weir_config *config;
} weir_settings;

/* The same as options give it, borrowed; config is a path or the text. */
typedef struct weir_settings_given {
    const char *family, *layout, *conversion, *transport, *config;
} weir_settings_given;

/* `settings` is zeroed; close it whatever this returns. */
weir_status weir_settings_open(weir_settings *settings, const weir_settings_given *given);
void weir_settings_close(weir_settings *settings);

/* A config.json that options name: a path or, when it begins with '{', the text itself, which errors
 * call "config". */
weir_status weir_settings_config(const char *config, weir_config **out);

/* A copy of text in *out, NULL for NULL. */
weir_status weir_settings_copy_text(char **out, const char *text);

#endif
