/* SPDX-License-Identifier: Apache-2.0 */
/* bench_refit_trainer.c - the trainer's process of `weir bench refit`.
 *
 * All weights change before each version, outside of what is timed: a replica that kept bytes of an
 * older one would be found out.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench_refit.h"
#include "flow.h"

static weir_trainer *_Atomic open_trainer; /* for the signal handler */

static void cancel(void)
{
    weir_trainer *waiting = open_trainer;
    if (waiting != NULL)
        weir_trainer_cancel(waiting);
}

static weir_delivery delivery_of(const char *text)
{
    if (text == NULL)
        return WEIR_DELIVERY_DEFAULT;
    return strcmp(text, "push") == 0 ? WEIR_DELIVERY_PUSH : WEIR_DELIVERY_PULL;
}

static int begin(const weir_bench_refit *bench, const weir_bench_weights *weights,
                 weir_trainer **out)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.directory = bench->directory;
    options.model = "bench";
    options.family = bench->family;
    options.layout = bench->layout;
    options.conversion = bench->conversion;
    options.config = bench->config;
    options.transport = bench->transport;
    options.n_threads = (unsigned)bench->n_threads;
    options.timeout_ms = (unsigned)bench->timeout_s * 1000;
    options.delivery = delivery_of(bench->delivery);
    options.window_bytes = bench->window_bytes;
    options.scan_first = bench->scan_first;
    options.wire = weir_bench_wire(bench);
    double begun = weir_cli_now();
    if (weir_trainer_open(&options, out) != WEIR_OK)
        return weir_cli_fail();
    open_trainer = *out;
    if (weir_trainer_register(*out, weights->tensors, weights->n_tensors) != WEIR_OK)
        return weir_cli_fail();
    weir_bench_refit_say(
        json_pack("{s:s, s:f}", "event", "begun", "seconds", weir_cli_now() - begun));
    return WEIR_EXIT_OK;
}

static int publish(const weir_bench_refit *bench, weir_bench_weights *weights,
                   weir_trainer *trainer, uint64_t version)
{
    weir_report report;
    if (!weir_bench_weights_fill(weights, version))
        return WEIR_EXIT_FAILED;
    double begun = weir_cli_now();
    if (weir_trainer_publish(trainer, version, &report) != WEIR_OK)
        return weir_cli_fail();
    double published = weir_cli_now();
    if (weir_trainer_wait(trainer, version, (unsigned)bench->n_workers - 1, 0) != WEIR_OK)
        return weir_cli_fail();
    double ended = weir_cli_now();
    json_t *said = weir_flow_report_json("published", &report);
    json_object_set_new(said, "publish_seconds", json_real(published - begun));
    json_object_set_new(said, "wait_seconds", json_real(ended - published));
    weir_bench_refit_say(said);
    return WEIR_EXIT_OK;
}

/* The lines of stdin, until it ends. */
static int obey(const weir_bench_refit *bench, weir_bench_weights *weights, weir_trainer **trainer)
{
    char line[256];
    int code = WEIR_EXIT_OK;
    while (code == WEIR_EXIT_OK && fgets(line, sizeof(line), stdin) != NULL) {
        uint64_t version;
        if (strcmp(line, "begin\n") == 0 && *trainer == NULL)
            code = begin(bench, weights, trainer);
        else if (sscanf(line, "publish %" SCNu64, &version) == 1 && *trainer != NULL)
            code = publish(bench, weights, *trainer, version);
        else
            code = weir_cli_error("trainer: '%s' is no word for it", line);
    }
    return code;
}

int weir_bench_refit_trainer(const weir_bench_refit *bench)
{
    weir_bench_weights weights;
    weir_trainer *trainer = NULL;
    int code = WEIR_EXIT_FAILED;
    weir_cli_on_stop(cancel);
    if (weir_bench_weights_open(bench->family, bench->config, bench->naming, bench->seed,
                                &weights) &&
        weir_bench_weights_place(&weights, bench->places[0]) &&
        weir_bench_weights_fill(&weights, 0)) {
        weir_bench_refit_say(json_pack(
            "{s:s, s:I, s:I, s:I}", "event", "ready", "tensors", (json_int_t)weights.n_tensors,
            "weights", (json_int_t)weights.n_weights, "bytes", (json_int_t)weights.n_bytes));
        code = obey(bench, &weights, &trainer);
    }
    weir_cli_on_stop(NULL);
    open_trainer = NULL;
    weir_trainer_close(trainer);
    weir_bench_weights_close(&weights);
    return code;
}
