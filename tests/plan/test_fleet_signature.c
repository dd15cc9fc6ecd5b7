/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include "model_case.h"

static void sign(const weir_fleet_args *args, char out[33])
{
    char unplanned[33];
    weir_fleet *fleet = NULL;
    if (weir_fleet_open(args, &fleet) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    weir_fleet_signature(fleet, out);
    assert_int_equal(strlen(out), 32);
    weir_fleet_close(fleet);
    assert_int_equal(weir_fleet_sign(args, unplanned), WEIR_OK);
    assert_string_equal(unplanned, out);
}

static void what_says_the_same_has_one_signature(void **state)
{
    (void)state;
    static const uint32_t owners[] = { 0, 0, 0, 1, 1 }, turned[] = { 0, 0, 1, 0, 1 };
    static const uint32_t ids[] = { 0, 1, 2, 3, 4 }, first[] = { 0, 3, 5 }, early[] = { 0, 2, 5 };
    weir_fleet_tensor t = matrix_of("w1", WEIR_CUT_COLUMN, 16, 8);
    weir_trainer_mesh trainer = { .ep = 2 };
    weir_replica_mesh replica = { .tp = 2, .ep = 2 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    char plain[33], got[33];
    t.n_experts = 5;
    args.tensors = &t;
    args.n_tensors = 1;
    args.trainer = &trainer;
    args.replica = &replica;
    sign(&args, plain);
    trainer = (weir_trainer_mesh){ 1, 1, 1, 2, 1, 0, owners, 5, 0 };
    replica = (weir_replica_mesh){ 2, 2, 1, 1, 7, 64, ids, first };
    sign(&args, got);
    assert_string_equal(got, plain);
    replica.expert_first = early; /* as many, but not as engines give them out */
    sign(&args, got);
    assert_string_not_equal(got, plain);
    replica.expert_ids = NULL;
    replica.expert_first = NULL;
    trainer.expert_owners = turned;
    sign(&args, got);
    assert_string_not_equal(got, plain);
    trainer.expert_owners = NULL;
    trainer.dense_whole = 1;
    sign(&args, plain);
    assert_string_not_equal(got, plain);
    trainer.dense_whole = 2;
    sign(&args, got);
    assert_string_equal(got, plain);
}

static void what_cannot_be_read_is_not_signed(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_COLUMN, 16, 8);
    weir_trainer_mesh trainer = { .sender = 1 };
    weir_replica_mesh replica = { .tp = 2 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    char out[33] = "as before";
    args.tensors = &t;
    args.n_tensors = 1;
    args.trainer = &trainer;
    args.replica = &replica;
    assert_int_equal(weir_fleet_sign(&args, out), WEIR_ERR_INVALID);
    trainer.sender = 0;
    t.n_parts = 0;
    assert_int_equal(weir_fleet_sign(&args, out), WEIR_ERR_INVALID);
    assert_string_equal(out, "as before");
}

static void whatever_changes_a_share_changes_the_signature(void **state)
{
    (void)state;
    static const uint32_t owners[] = { 1, 0, 0, 1 };
    static const uint32_t ids[] = { 0, 1, 2, 3, 3, 1 }, first[] = { 0, 3, 6 },
                          other[] = { 0, 2, 6 };
    weir_fleet_tensor t[2] = { matrix_of("t", WEIR_CUT_COLUMN, 64, 16),
                               matrix_of("w1", WEIR_CUT_COLUMN, 16, 8) };
    weir_trainer_mesh trainer = { .fsdp = 2, .ep = 2 };
    weir_replica_mesh replica = { .tp = 2, .ep = 2, .dp = 2 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    char seen[16][33];
    size_t n = 0;
    t[1].n_experts = 4;
    args.tensors = t;
    args.n_tensors = 2;
    args.trainer = &trainer;
    args.replica = &replica;
    sign(&args, seen[n++]);
    t[0].name = "u";
    sign(&args, seen[n++]);
    t[0].n_cols = 32;
    sign(&args, seen[n++]);
    t[1].stacked = true;
    sign(&args, seen[n++]);
    t[0].conversion = &case_conversions[3];
    sign(&args, seen[n++]);
    weir_conversion by_magnitude = case_conversions[3];
    by_magnitude.by_magnitude = true;
    t[0].conversion = &by_magnitude;
    sign(&args, seen[n++]);
    trainer.tp = 2;
    sign(&args, seen[n++]);
    trainer.dense_whole = 1;
    sign(&args, seen[n++]);
    trainer.expert_owners = owners;
    trainer.n_expert_owners = 4;
    sign(&args, seen[n++]);
    replica.expert_ids = ids;
    replica.expert_first = first;
    sign(&args, seen[n++]);
    replica.expert_first = other;
    sign(&args, seen[n++]);
    replica.pp = 2;
    sign(&args, seen[n++]);
    args.n_tensors = 1;
    sign(&args, seen[n++]);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(seen[i], seen[k]);
    replica.replicas = 9;
    sign(&args, seen[n]);
    assert_string_equal(seen[n], seen[n - 1]);
}

static void outline(const weir_fleet_args *args, char out[33])
{
    weir_fleet *fleet = NULL;
    if (weir_fleet_open(args, &fleet) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    weir_fleet_outline(fleet, out);
    assert_int_equal(strlen(out), 32);
    weir_fleet_close(fleet);
}

static void an_outline_leaves_out_what_ranks_guess(void **state)
{
    (void)state;
    static const uint32_t owners[] = { 1, 0, 0, 1 };
    weir_fleet_tensor t = matrix_of("w1", WEIR_CUT_COLUMN, 16, 8);
    weir_trainer_mesh trainer = { .fsdp = 2, .ep = 2 };
    weir_replica_mesh replica = { .tp = 2 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    char first[33], seen[6][33];
    size_t n = 0;
    t.n_experts = 4;
    args.tensors = &t;
    args.n_tensors = 1;
    args.trainer = &trainer;
    args.replica = &replica;
    outline(&args, first);
    t.stacked = true;
    t.source_bits = 32;
    outline(&args, seen[n++]);
    assert_string_equal(first, seen[0]);
    trainer.expert_owners = owners;
    trainer.n_expert_owners = 4;
    outline(&args, seen[n++]);
    t.conversion = &case_conversions[3];
    outline(&args, seen[n++]);
    t.layer = 1;
    outline(&args, seen[n++]);
    replica.tp = 1;
    outline(&args, seen[n++]);
    trainer.fsdp = 3;
    outline(&args, seen[n++]);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(seen[i], seen[k]);
}

static void held_boxes_are_signed(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 8, 8);
    weir_replica_mesh replica = { .tp = 1 };
    weir_held held[] = { { .rank = 0, .expert_hi = 1, .row_hi = 4, .col_hi = 8 },
                         { .rank = 1, .expert_hi = 1, .row_lo = 4, .row_hi = 8, .col_hi = 8 } };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    char a[33], b[33];
    args.tensors = &t;
    args.n_tensors = 1;
    args.held = held;
    args.n_held = 2;
    args.replica = &replica;
    sign(&args, a);
    weir_held first = held[0];
    held[0] = held[1]; /* in another order */
    held[1] = first;
    sign(&args, b);
    assert_string_equal(a, b);
    held[0].row_lo = 3;
    sign(&args, b);
    assert_string_not_equal(a, b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_says_the_same_has_one_signature),
        cmocka_unit_test(what_cannot_be_read_is_not_signed),
        cmocka_unit_test(whatever_changes_a_share_changes_the_signature),
        cmocka_unit_test(an_outline_leaves_out_what_ranks_guess),
        cmocka_unit_test(held_boxes_are_signed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
