/* SPDX-License-Identifier: Apache-2.0 */
/* mapping.h - what a weir_mapping is made of, for the files of this folder, and taking new pointers
 * for a mapping that is already there.
 */
#ifndef WEIR_FAMILY_MAPPING_H
#define WEIR_FAMILY_MAPPING_H

#include "base/arena.h"
#include "family/model.h"

struct weir_mapping {
    weir_arena arena; /* everything below */
    const weir_conversion *conversion;
    weir_tensor *given; /* the views as they came */
    size_t n_given;
    weir_tensor *bound; /* the views in entry order: entries point into it */
    size_t *origin;     /* of each bound view: its index among the given */
    uint64_t *offset;   /* and where in it the view begins, in bytes; NULL: all of them at 0 */
    size_t n_bound;
    size_t tied[2];  /* given views that must hold the same bytes; SIZE_MAX: none */
    bool unreadable; /* by this processor: whoever can read them compares the tied ones */
    weir_map_entry *entries;
    const weir_family_row **rows; /* of the entries; NULL of layout "checkpoint" */
    size_t n_entries;
    weir_parameter *parameters;
    size_t n_parameters;
    weir_derived *derived;
    size_t n_derived;
};

/* Takes the data pointers of views that equal, one by one, those the mapping was opened with
 * (names, dtypes and shapes). Allocates nothing. ERR_LAYOUT, with the mapping unchanged, when they
 * differ: the caller opens another mapping then. The new views and names replace the old ones,
 * which may go.
 */
weir_status weir_mapping_rebind(weir_mapping *mapping, const weir_tensor *sources,
                                size_t n_sources);

/* What the conversion of an entry is given; outputs, digests and choices are the caller's to add.
 */
weir_convert_args weir_map_entry_args(const weir_map_entry *entry);

/* ERR_LAYOUT when the two tied sources are both there, with data, and differ. */
weir_status weir_mapping_check_tied(const weir_tensor *head, const weir_tensor *embedding);

#endif
