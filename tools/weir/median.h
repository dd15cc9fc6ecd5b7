/* SPDX-License-Identifier: Apache-2.0 */
/* median.h - the figure that benches report. */
#ifndef WEIR_TOOLS_MEDIAN_H
#define WEIR_TOOLS_MEDIAN_H

#include <stddef.h>

/* Sorts `values`; 0 for none. */
double weir_median(double *values, size_t n);

#endif
