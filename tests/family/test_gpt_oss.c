/* SPDX-License-Identifier: Apache-2.0 */
#include "family/source_set.h"
#include "weir/mesh.h"

static weir_status plan_for(const char *replica)
{
    source_set *set = set_of_preset("gpt_oss", "ragged", WEIR_NAMING_HF);
    weir_mapping *mapping = NULL;
    weir_fleet_tensor *tensors;
    weir_fleet *fleet = NULL;
    weir_trainer_mesh trainer;
    weir_replica_mesh engines;
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    assert_int_equal(set_open(set, NULL, NULL, NULL, &mapping), WEIR_OK);
    assert_int_equal(weir_fleet_tensors_of(mapping, &tensors, &args.n_tensors), WEIR_OK);
    assert_int_equal(weir_trainer_mesh_parse("fsdp=2,tp=2", &trainer), WEIR_OK);
    assert_int_equal(weir_replica_mesh_parse(replica, &engines), WEIR_OK);
    args.tensors = tensors;
    args.trainer = &trainer;
    args.replica = &engines;
    weir_status status = weir_fleet_open(&args, &fleet);
    weir_fleet_close(fleet);
    weir_fleet_tensors_free(tensors);
    weir_mapping_close(mapping);
    set_free(set);
    return status;
}

/* The bias of the down projection would be added once by each. */
static void engines_that_divide_an_experts_width_are_refused(void **state)
{
    (void)state;
    assert_int_equal(plan_for("tp=2"), WEIR_ERR_UNSUPPORTED);
    assert_error_has("model.layers.0.mlp.experts.w2_weight_bias: one of 2 workers holds it");
    assert_int_equal(plan_for("tp=4,ep=2"), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(plan_for("tp=2,ep=2"), WEIR_OK);
    assert_int_equal(plan_for("dp=2,ep=2"), WEIR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engines_that_divide_an_experts_width_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
