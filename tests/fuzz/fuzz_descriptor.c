/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_descriptor.c - any text as a registry: decoded within bounds or refused; what is decoded can
 * be planned with, and what passes the check is encoded as what it was. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "weir/descriptor.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The text of a registry is a registry with the same text. */
static void check_text(const weir_tensor_registry *registry)
{
    weir_tensor_registry *again = NULL;
    char *text = NULL, *second = NULL;
    if (weir_tensor_registry_encode(registry, &text) != WEIR_OK)
        return;
    if (weir_tensor_registry_decode(text, strlen(text), &again) != WEIR_OK ||
        weir_tensor_registry_encode(again, &second) != WEIR_OK || strcmp(text, second) != 0)
        abort();
    weir_tensor_registry_close(again);
    weir_string_free(second);
    weir_string_free(text);
}

/* As two ranks that publish the same. Contributions tile a slice: as many bytes as it has. */
static void check_coverage(const weir_tensor_registry *registry)
{
    const weir_publisher publishers[] = { { "w0", 0, registry }, { "w1", 1, registry } };
    weir_coverage_args args = WEIR_COVERAGE_ARGS_INIT;
    weir_coverage *coverage;
    size_t n;
    args.publishers = publishers;
    args.n_publishers = 2;
    args.world_size = 2;
    args.rank = 1;
    if (weir_coverage_open(&args, &coverage) != WEIR_OK)
        abort();
    const weir_contribution *parts = weir_coverage_contributions(coverage, &n);
    for (size_t i = 0; i < n; i++) {
        if (parts[i].source_hi - parts[i].source_lo != parts[i].target_hi - parts[i].target_lo)
            abort();
    }
    (void)weir_coverage_check(coverage);
    weir_coverage_close(coverage);
}

static void check_boxes(const weir_tensor_registry *registry)
{
    static const weir_tensor source = { .name = "a",
                                        .dtype = WEIR_BF16,
                                        .shape = { 3, { 4, 8, 8 } } };
    static const weir_map_entry entry = { .name = "a", .sources = &source, .n_sources = 1 };
    static const weir_fleet_tensor tensor = { .name = "a",
                                              .n_experts = 4,
                                              .stacked = true,
                                              .n_cols = 8,
                                              .n_sources = 1,
                                              .n_parts = 1,
                                              .source_rows = { 8 },
                                              .parts = { { 0, 0, 0, 8 } } };
    const weir_described_model model = { &entry, &tensor, 1 };
    const weir_publisher publisher = { "w0", 0, registry };
    weir_held *held;
    size_t n;
    if (weir_held_of_registries(&model, &publisher, 1, &held, &n) != WEIR_OK)
        return;
    for (size_t i = 0; i < n; i++) {
        if (held[i].expert_hi > 4 || held[i].row_hi > 8 || held[i].col_hi > 8 ||
            held[i].row_lo >= held[i].row_hi || held[i].col_lo >= held[i].col_hi)
            abort();
    }
    weir_held_free(held);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weir_tensor_registry *registry;
    if (weir_tensor_registry_decode((const char *)data, size, &registry) == WEIR_OK) {
        check_text(registry);
        check_coverage(registry);
        check_boxes(registry);
        weir_tensor_registry_close(registry);
    }
    if (weir_tensor_descriptor_decode((const char *)data, size, &registry) == WEIR_OK) {
        check_text(registry);
        weir_tensor_registry_close(registry);
    }
    return 0;
}
