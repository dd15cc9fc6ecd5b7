/* SPDX-License-Identifier: Apache-2.0 */
/* held_boxes.h - a growing list of boxes that ranks hold. */
#ifndef WEIR_PLAN_HELD_BOXES_H
#define WEIR_PLAN_HELD_BOXES_H

#include "weir/mesh.h"

/* All zero when empty; the boxes are freed with weir_held_free(). */
typedef struct weir_held_boxes {
    weir_held *boxes;
    size_t n, room;
} weir_held_boxes;

weir_status weir_held_boxes_add(weir_held_boxes *list, const weir_held *box);

#endif
