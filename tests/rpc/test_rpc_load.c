/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_load.c - what the server takes when all is well: calls per second and their latency with
 * many connections, and memory per parked call. Prints the figures; the bounds are those that even
 * a slow, shared machine keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <time.h>
#include <unistd.h>

#include "refit.pb-c.h"
#include "rpc/echo_service.h"
#include "rpc/many_calls.h"

#define N_CONNECTIONS 64
#define N_CALLS 20000u
#define N_PARKED 8000u

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* One call at a time on each of 64 connections, all driven by this thread. */
static void test_an_echo_on_many_connections(void **state)
{
    (void)state;
    weir_rpc_server *server = echo_open("127.0.0.1:0");
    assert_non_null(server);
    static many_calls calls[N_CONNECTIONS];
    static many_call call[N_CONNECTIONS];
    static uint64_t begin_ns[N_CONNECTIONS];
    static float latency_ms[N_CALLS + N_CONNECTIONS];
    struct pollfd fds[N_CONNECTIONS];
    unsigned n = 0;
    for (int i = 0; i < N_CONNECTIONS; i++)
        assert_true(many_open(&calls[i], weir_rpc_server_address(server)));
    uint64_t all_ns = weir_now_ns();
    for (int i = 0; i < N_CONNECTIONS; i++) {
        fds[i] = (struct pollfd){ .fd = calls[i].channel.fd, .events = POLLIN };
        begin_ns[i] = weir_now_ns();
        many_begin(&calls[i], &call[i], "uid", "60S");
        /* Not read from yet: an answer that is taken here would never be seen below. */
        assert_int_equal(weir_rpc_channel_write(&calls[i].channel), WEIR_OK);
    }
    while (n < N_CALLS) {
        assert_true(poll(fds, N_CONNECTIONS, 10000) > 0);
        for (int i = 0; i < N_CONNECTIONS; i++) {
            if (fds[i].revents == 0)
                continue;
            assert_int_equal(weir_rpc_channel_read(&calls[i].channel, SIZE_MAX), WEIR_OK);
            if (!call[i].is_over)
                continue;
            assert_int_equal(call[i].grpc_status, 0);
            latency_ms[n++] = (float)(call[i].over_ns - begin_ns[i]) / 1e6f;
            begin_ns[i] = weir_now_ns();
            many_begin(&calls[i], &call[i], "uid", "60S");
            assert_int_equal(weir_rpc_channel_write(&calls[i].channel), WEIR_OK);
        }
    }
    double seconds = (double)(weir_now_ns() - all_ns) / 1e9;
    qsort(latency_ms, n, sizeof(latency_ms[0]), compare);
    printf("%.0f calls per second on %d connections: p50 %.3f ms, p99 %.3f ms\n",
           (double)n / seconds, N_CONNECTIONS, latency_ms[n / 2], latency_ms[n * 99 / 100]);
    assert_true(latency_ms[n / 2] < 100);
    for (int i = 0; i < N_CONNECTIONS; i++)
        many_close(&calls[i]);
    weir_rpc_server_close(server);
}

static _Atomic unsigned n_parked;

static weir_rpc_code park(void *context, const weir_rpc_call_info *call,
                          const ProtobufCMessage *request, weir_arena *arena,
                          const ProtobufCMessage **out_response, char *text)
{
    (void)context, (void)call, (void)request, (void)arena, (void)out_response, (void)text;
    n_parked++;
    return WEIR_RPC_LATER;
}

static double resident_bytes(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*s %ld", &pages), 1);
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void cpu_now(struct timespec *out)
{
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, out);
}

/* The callers are in this process as well, so that what a call takes is what both take. */
static void test_parked_calls_take_little(void **state)
{
    (void)state;
    static const weir_rpc_method methods[] = { { "GetWeightVersion", park } };
    const weir_rpc_service service = { &model_express__refit__refit_service__descriptor, methods, 1,
                                       NULL };
    const weir_rpc_server_options options = { .listen = "127.0.0.1:0",
                                              .services = &service,
                                              .n_services = 1 };
    weir_rpc_server *server;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    static many_calls calls[N_CONNECTIONS];
    static many_call call[N_PARKED];
    memset(call, 1, sizeof(call)); /* not to be counted */
    for (int i = 0; i < N_CONNECTIONS; i++)
        assert_true(many_open(&calls[i], weir_rpc_server_address(server)));
    double before = resident_bytes();
    for (unsigned k = 0; k < N_PARKED; k++)
        many_begin(&calls[k % N_CONNECTIONS], &call[k],
                   "a name of a version that is as long as they are, 0123456789", "60S");
    double of_callers = resident_bytes() - before;
    weir_deadline deadline = weir_deadline_in(20000);
    while (n_parked < N_PARKED && !weir_deadline_passed(deadline)) {
        for (int i = 0; i < N_CONNECTIONS; i++)
            assert_true(many_progress(&calls[i], 0));
    }
    assert_int_equal(n_parked, N_PARKED);
    double each = (resident_bytes() - before) / N_PARKED;
    struct timespec begin, end;
    cpu_now(&begin);
    weir_sleep_ms(300); /* to see what waiting costs */
    cpu_now(&end);
    double idle_ms =
        (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) / 1e6;
    printf("%u calls parked: %.0f bytes each, of these %.0f of the callers; 300 ms of waiting took "
           "%.2f ms of processor time\n",
           N_PARKED, each, of_callers / N_PARKED, idle_ms);
    assert_true(idle_ms < 100);
    for (int i = 0; i < N_CONNECTIONS; i++)
        many_close(&calls[i]);
    weir_rpc_server_close(server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_echo_on_many_connections),
        cmocka_unit_test(test_parked_calls_take_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
