/* SPDX-License-Identifier: Apache-2.0 */
/* top.h - one frame of `weir top`: what a directory said, drawn into so many rows and columns. */
#ifndef WEIR_TOOLS_TOP_H
#define WEIR_TOOLS_TOP_H

#include "cli.h"

#define WEIR_TOP_FLIGHTS 64

/* How fast one worker's refit goes. */
typedef struct weir_top_rate {
    char worker[256];
    uint64_t version, done_bytes, at_ms;
    double bytes_per_second;
} weir_top_rate;

typedef struct weir_top_frame {
    const char *directory;
    const char *trouble;        /* NULL: none; else why it could not be asked */
    json_t *fleet;              /* as docs/wire.md has it; NULL: nothing yet */
    unsigned n_columns, n_rows; /* n_rows 0: as many as it takes */
    bool is_plain_text;         /* no colours */
    weir_top_rate rates[WEIR_TOP_FLIGHTS];
    size_t n_rates, n_drawn; /* drawn: rows so far */
} weir_top_frame;

void weir_top_take(weir_top_frame *frame, json_t *taken); /* the frame's now */
void weir_top_draw(weir_top_frame *frame);

/* The same document, of what a ModelExpress server knows of one model; NULL after the library has
 * recorded why. */
json_t *weir_top_discover(const char *directory, const char *model, unsigned timeout_ms);

#endif
