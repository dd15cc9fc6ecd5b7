/* SPDX-License-Identifier: Apache-2.0 */
/* registry.h - what the rest of convert/ needs of the registry beyond weir/convert.h. */
#ifndef WEIR_CONVERT_REGISTRY_H
#define WEIR_CONVERT_REGISTRY_H

#include "weir/convert.h"

/* Writes "[a, b, c]", all registered names in order, and returns the buffer. */
const char *weir_conversion_list(char *buffer, size_t buffer_bytes);

#endif
