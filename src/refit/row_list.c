/* SPDX-License-Identifier: Apache-2.0 */
/* row_list.c - joins copies of rows as they come. Each is held against the last few alone. */
#include "refit/row_list.h"

/* From where `before` begins to where `after` does; 0: `after` is not behind it. */
static uint64_t distance(const void *before, const void *after)
{
    const unsigned char *first = before, *second = after;
    return second > first ? (uint64_t)(second - first) : 0;
}

/* Side by side at both ends. */
static bool lengthens(const weir_work_rows *open, const weir_work_rows *rows)
{
    return open->n_rows == 1 && rows->n_rows == 1 &&
           distance(open->to, rows->to) == open->row_bytes &&
           distance(open->from, rows->from) == open->row_bytes;
}

/* How far apart the rows of both are, when `rows` goes on where `open` ends; 0: it does not. */
static uint64_t common_pitch(const weir_work_rows *open, uint64_t open_pitch,
                             const weir_work_rows *rows, uint64_t rows_pitch, uint64_t apart)
{
    uint64_t pitch = open->n_rows > 1 ? open_pitch : rows->n_rows > 1 ? rows_pitch : apart;
    bool fits = rows->n_rows == 1 || rows_pitch == pitch;
    return fits && pitch >= open->row_bytes && apart == open->n_rows * pitch ? pitch : 0;
}

static bool join(weir_work_rows *open, const weir_work_rows *rows)
{
    if (lengthens(open, rows)) {
        open->row_bytes += rows->row_bytes;
        return true;
    }
    if (open->row_bytes != rows->row_bytes)
        return false;
    uint64_t to_pitch =
        common_pitch(open, open->to_pitch, rows, rows->to_pitch, distance(open->to, rows->to));
    uint64_t from_pitch = common_pitch(open, open->from_pitch, rows, rows->from_pitch,
                                       distance(open->from, rows->from));
    if (to_pitch == 0 || from_pitch == 0)
        return false;
    open->to_pitch = to_pitch;
    open->from_pitch = from_pitch;
    open->n_rows += rows->n_rows;
    return true;
}

void weir_row_list_add(weir_row_list *list, const weir_work_rows *rows, uint32_t piece)
{
    size_t oldest = list->n > WEIR_ROW_LIST_OPEN ? list->n - WEIR_ROW_LIST_OPEN : 0;
    for (size_t i = list->n; i > oldest; i--) {
        if (list->pieces[(i - 1) % WEIR_ROW_LIST_OPEN] == piece && join(&list->rows[i - 1], rows))
            return;
    }
    list->pieces[list->n % WEIR_ROW_LIST_OPEN] = piece;
    list->rows[list->n++] = *rows;
}
