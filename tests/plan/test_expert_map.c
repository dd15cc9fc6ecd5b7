/* SPDX-License-Identifier: Apache-2.0 */
#include "weir/mesh.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"

static void a_replica_s_map_is_read_rank_by_rank(void **state)
{
    (void)state;
    static const uint32_t ids[] = { 0, 1, 2, 3, 7, 65535, 0 }, first[] = { 0, 4, 4, 7 };
    weir_replica_mesh mesh = { .ep = 3 };
    assert_int_equal(weir_replica_mesh_set_experts(&mesh, "[[0,1,2,3], [], [7,65535,0]]"), WEIR_OK);
    assert_memory_equal(mesh.expert_ids, ids, sizeof(ids));
    assert_memory_equal(mesh.expert_first, first, sizeof(first));
    weir_expert_map_free(mesh.expert_ids);
    weir_expert_map_free(NULL);
}

static void a_trainer_s_map_names_an_owner_per_expert(void **state)
{
    (void)state;
    static const uint32_t owners[] = { 0, 0, 1, 1, 0 };
    weir_trainer_mesh mesh = { .ep = 2 };
    assert_int_equal(weir_trainer_mesh_set_owners(&mesh, "[0,0,1,1,0]"), WEIR_OK);
    assert_int_equal(mesh.n_expert_owners, 5);
    assert_memory_equal(mesh.expert_owners, owners, sizeof(owners));
    weir_expert_map_free(mesh.expert_owners);
}

static void what_is_wrong_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *json, *line;
    } of_replicas[] = {
        { "[[0],[1],[2]]", "expert map: 3 expert ranks, the mesh has ep=2" },
        { "[[0],1]", "expert map: expert rank 1: expected an array of expert ids" },
        { "[[0],[1,-1]]", "expert map: expert rank 1, slot 1: expected an expert's number below "
                          "65536" },
        { "[[0],[65536]]", "expert map: expert rank 1, slot 0: expected an expert's number below "
                           "65536" },
        { "[[0],[1.5]]", "expert map: expert rank 1, slot 0: expected an expert's number below "
                         "65536" },
        { "[[],[]]", "expert map: no expert rank holds an expert" },
        { "[]", "expert map: expected a JSON array with something in it" },
        { "{\"a\":1}", "expert map: expected a JSON array with something in it" },
    }, of_trainers[] = {
        { "[0,2]", "owner map: expert 1: expected an expert rank below ep=2" },
        { "[0,\"1\"]", "owner map: expert 1: expected an expert rank below ep=2" },
        { "[[0,1]]", "owner map: expert 0: expected an expert rank below ep=2" },
    };
    weir_replica_mesh replica = { .ep = 2 };
    weir_trainer_mesh trainer = { .ep = 2 };
    for (size_t i = 0; i < sizeof(of_replicas) / sizeof(of_replicas[0]); i++) {
        assert_int_equal(weir_replica_mesh_set_experts(&replica, of_replicas[i].json),
                         WEIR_ERR_INVALID);
        assert_string_equal(weir_last_error(), of_replicas[i].line);
    }
    for (size_t i = 0; i < sizeof(of_trainers) / sizeof(of_trainers[0]); i++) {
        assert_int_equal(weir_trainer_mesh_set_owners(&trainer, of_trainers[i].json),
                         WEIR_ERR_INVALID);
        assert_string_equal(weir_last_error(), of_trainers[i].line);
    }
    assert_int_equal(weir_replica_mesh_set_experts(&replica, "[[0],[1]"), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "expert map: no JSON: "));
    assert_int_equal(weir_replica_mesh_set_experts(&replica, NULL), WEIR_ERR_INVALID);
    assert_null(replica.expert_ids);
    assert_null(trainer.expert_owners);
}

static void a_map_that_is_too_long_is_refused(void **state)
{
    (void)state;
    weir_trainer_mesh mesh = { .ep = 2 };
    size_t n = 65536;
    char *text = malloc(2 * n + 2);
    for (size_t i = 0; i < n; i++)
        memcpy(text + 2 * i, i == 0 ? "[0" : ",0", 2);
    memcpy(text + 2 * n, "]", 2);
    assert_int_equal(weir_trainer_mesh_set_owners(&mesh, text), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "owner map: more than 65535 experts");
    free(text);
    text = malloc((17u << 20) + 1);
    memset(text, ' ', 17u << 20);
    text[17u << 20] = '\0';
    assert_int_equal(weir_trainer_mesh_set_owners(&mesh, text), WEIR_ERR_INVALID);
    assert_null(mesh.expert_owners);
    free(text);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    weir_replica_mesh replica = { .ep = 1 };
    weir_trainer_mesh trainer = { .ep = 1 };
    weir_alloc_fail_at(1);
    assert_int_equal(weir_replica_mesh_set_experts(&replica, "[[0]]"), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(1);
    assert_int_equal(weir_trainer_mesh_set_owners(&trainer, "[0]"), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_null(replica.expert_ids);
    assert_null(trainer.expert_owners);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replica_s_map_is_read_rank_by_rank),
        cmocka_unit_test(a_trainer_s_map_names_an_owner_per_expert),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(a_map_that_is_too_long_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
