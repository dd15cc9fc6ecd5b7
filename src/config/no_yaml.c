/* SPDX-License-Identifier: Apache-2.0 */
/* no_yaml.c - what stands in for yaml_tree.c in a build without libyaml. */
#include "base/error.h"
#include "config/yaml_tree.h"

weir_status weir_yaml_parse(const char *text, size_t n_bytes, weir_arena *arena,
                            const weir_yaml_node **out_root, weir_yaml_fault *fault)
{
    (void)text;
    (void)n_bytes;
    (void)arena;
    (void)out_root;
    (void)fault;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "this build reads no YAML (WEIR_YAML, libyaml-dev)");
}
