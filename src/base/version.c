/* SPDX-License-Identifier: Apache-2.0 */
/* version.c - the version of the library that is running, which may not be that of the headers. */
#include "weir/weir.h"

const char *weir_version(void)
{
    return WEIR_VERSION;
}
