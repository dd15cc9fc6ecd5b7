/* SPDX-License-Identifier: Apache-2.0 */
/* clock.c - clock_gettime, in the units that the rest of Weir uses. */
#include "base/clock.h"

#include <errno.h>
#include <time.h>

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull
#define NS_PER_US 1000ull

static uint64_t read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t weir_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

double weir_now_s(void)
{
    return (double)weir_now_ns() * 1e-9;
}

uint64_t weir_unix_ms(void)
{
    return read_clock(CLOCK_REALTIME) / NS_PER_MS;
}

uint64_t weir_unix_us(void)
{
    return read_clock(CLOCK_REALTIME) / NS_PER_US;
}

void weir_sleep_ms(unsigned ms)
{
    struct timespec t = { ms / 1000, (long)(ms % 1000) * (long)NS_PER_MS };
    while (nanosleep(&t, &t) != 0 && errno == EINTR) {
    }
}

weir_deadline weir_deadline_in(unsigned ms)
{
    return weir_now_ns() + ms * NS_PER_MS;
}

bool weir_deadline_passed(weir_deadline deadline)
{
    return weir_now_ns() >= deadline;
}

unsigned weir_deadline_left_ms(weir_deadline deadline)
{
    uint64_t now = weir_now_ns();
    return now >= deadline ? 0 : (unsigned)((deadline - now + NS_PER_MS - 1) / NS_PER_MS);
}
