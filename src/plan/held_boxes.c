/* SPDX-License-Identifier: Apache-2.0 */
/* held_boxes.c - boxes that ranks hold, one after the other. */
#include "plan/held_boxes.h"

#include "base/alloc.h"
#include "weir/descriptor.h"

weir_status weir_held_boxes_add(weir_held_boxes *list, const weir_held *box)
{
    if (list->n == list->room) {
        size_t room = list->room * 2 + 64;
        weir_held *grown = weir_realloc(list->boxes, room * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        list->boxes = grown;
        list->room = room;
    }
    list->boxes[list->n++] = *box;
    return WEIR_OK;
}

void weir_held_free(weir_held *held)
{
    weir_free(held);
}
