/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_source_facts.c - any text as what a source says of itself: by its identity, its sidecar, its
 * agent's name. Read within bounds, and judged: what is taken has nothing against it. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "directory/judge.h"
#include "directory/sidecar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const weir_judged *judged)
{
    const weir_candidate *candidate = &judged->candidate;
    size_t n_bad = 0;
    for (size_t i = 0; i < candidate->n_findings; i++)
        n_bad += !judged->findings[i].ok;
    if (candidate->n_findings > WEIR_MAX_FINDINGS || candidate->taken != (n_bad == 0) ||
        candidate->taken != (candidate->reason[0] == '\0'))
        abort();
}

static void judge(const weir_judge_wish *wish, const ModelExpress__P2p__SourceIdentity *identity,
                  const ModelExpress__P2p__WorkerMetadata *worker)
{
    static weir_judged judged[2];
    const weir_listed_source listed = { "id", "worker", "m", 1, 2, NULL };
    weir_source_facts facts;
    weir_arena arena;
    size_t n_taken;
    weir_arena_init(&arena, 0);
    if (weir_source_facts_open(identity, worker, &facts) == WEIR_OK) {
        for (size_t i = 0; i < 2; i++) {
            if (weir_judge_source(wish, &listed, &facts, &arena, &judged[i]) != WEIR_OK)
                abort();
            check(&judged[i]);
        }
        if (weir_judge_settle(judged, 2, &arena, &n_taken) != WEIR_OK || n_taken > 1)
            abort(); /* both are of one worker */
        check(&judged[1]);
    }
    weir_source_facts_close(&facts);
    weir_arena_close(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const targets[] = { "hf_raw", "cutlass_fp8" };
    weir_discover_wish given = WEIR_DISCOVER_WISH_INIT;
    weir_judge_wish wish;
    given.model = "m";
    given.targets = targets;
    given.n_targets = size % 3;
    given.required_metadata = size % 2 != 0 ? "{\"block_size\":[128,128]}" : NULL;
    if (weir_judge_wish_open(&given, &wish) != WEIR_OK)
        abort();
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = '\0';
    ModelExpress__P2p__SourceIdentity identity = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__INIT;
    ModelExpress__P2p__SourceIdentity__ExtraParametersEntry mark, registry,
        *extras[] = { &mark, &registry };
    model_express__p2p__source_identity__extra_parameters_entry__init(&mark);
    registry = mark;
    mark.key = (char *)"mx_v2", mark.value = (char *)"1";
    registry.key = (char *)"shape_registry", registry.value = text;
    identity.extra_parameters = extras;
    identity.n_extra_parameters = 2;
    ModelExpress__P2p__TensorDescriptor sidecar = MODEL_EXPRESS__P2P__TENSOR_DESCRIPTOR__INIT;
    ModelExpress__P2p__TensorDescriptor *tensors[] = { &sidecar };
    ModelExpress__P2p__WorkerMetadata worker;
    model_express__p2p__worker_metadata__init(&worker);
    judge(&wish, &identity, &worker);
    sidecar.name = (char *)WEIR_SIDECAR_JSON;
    sidecar.dtype = text;
    worker.tensors = tensors;
    worker.n_tensors = 1;
    judge(&wish, NULL, &worker);
    worker.n_tensors = 0;
    worker.agent_name = text;
    judge(&wish, NULL, &worker);
    free(text);
    weir_judge_wish_close(&wish);
    return 0;
}
