/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_wait.c - asks again and again: at once for a while, as most work ends soon, then with naps
 * between, so that a core is not kept busy. */
#include "device/cuda_wait.h"

#include <sched.h>
#include <time.h>

#include "base/clock.h"

#define SPIN_NS 200000u
#define NAP_NS 30000

static int wait_for(int (*test)(void *what), void *what, unsigned timeout_ms)
{
    const struct timespec nap = { .tv_nsec = NAP_NS };
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    uint64_t spin_ns = weir_now_ns() + SPIN_NS;
    for (;;) {
        int error = test(what);
        if (error != WEIR_CUDA_NOT_READY || weir_deadline_passed(deadline))
            return error;
        if (weir_now_ns() < spin_ns)
            sched_yield();
        else
            nanosleep(&nap, NULL);
    }
}

int weir_cuda_wait_event(const weir_cuda_runtime *cuda, void *event, unsigned timeout_ms)
{
    return wait_for(cuda->event_test, event, timeout_ms);
}

int weir_cuda_wait_stream(const weir_cuda_runtime *cuda, void *stream, unsigned timeout_ms)
{
    return wait_for(cuda->stream_test, stream, timeout_ms);
}
