/* SPDX-License-Identifier: Apache-2.0 */
/* clock.h - monotonic time and deadlines. Every wait in Weir is bounded by one of these. */
#ifndef WEIR_BASE_CLOCK_H
#define WEIR_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

uint64_t weir_now_ns(void);     /* monotonic */
double weir_now_s(void);        /* the same in seconds */
uint64_t weir_unix_ms(void);    /* wall clock, for records that leave the process */
uint64_t weir_unix_us(void);
void weir_sleep_ms(unsigned ms);

typedef uint64_t weir_deadline; /* a monotonic instant in ns */
weir_deadline weir_deadline_in(unsigned ms);
bool weir_deadline_passed(weir_deadline deadline);
unsigned weir_deadline_left_ms(weir_deadline deadline); /* rounded up; 0 when passed */

#endif
