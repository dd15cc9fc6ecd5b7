/* SPDX-License-Identifier: Apache-2.0 */
/* nonfinite.h - finds and names the weight for which a conversion was refused. */
#ifndef WEIR_CONVERT_NONFINITE_H
#define WEIR_CONVERT_NONFINITE_H

#include "convert/fused.h"

/* Records "NAME[12, 345] is NaN" for the first element in the order of the sources and returns
 * ERR_NONFINITE. `rounds`: fp32 sources become bf16, in which they may turn Inf. Slow, but a failed
 * publish has time; one thread, so that the answer does not depend on how many there are. */
weir_status weir_nonfinite_report(const weir_conversion *conversion, const weir_fused *fused,
                                  bool rounds);

/* The least magnitude (the bits without the sign) that is refused; for fp32 that becomes bf16, the
 * least that rounds to Inf. */
uint32_t weir_nonfinite_least(weir_dtype dtype, bool rounds);

/* The line for an element that was found elsewhere: its number in the source, and its bits. */
weir_status weir_nonfinite_fail(const weir_tensor *source, uint64_t element, uint32_t bits);

#endif
