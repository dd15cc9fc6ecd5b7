/* SPDX-License-Identifier: Apache-2.0 */
#include "weir/mesh.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void a_mesh_is_read_in_any_order(void **state)
{
    (void)state;
    weir_trainer_mesh t;
    weir_replica_mesh r;
    assert_int_equal(weir_trainer_mesh_parse("fsdp=8,tp=2,ep=4,pp=3,hsdp=2", &t), WEIR_OK);
    assert_int_equal(t.fsdp, 8);
    assert_int_equal(t.tp, 2);
    assert_int_equal(t.ep, 4);
    assert_int_equal(t.pp, 3);
    assert_int_equal(t.hsdp, 2);
    assert_int_equal(t.sender, 0);
    assert_int_equal(weir_trainer_mesh_ranks(&t), 8 * 2 * 4 * 3 * 2);
    assert_int_equal(weir_replica_mesh_parse("replicas=2,ep=8,tp=4,dp=2,pp=2,pad=128", &r),
                     WEIR_OK);
    assert_int_equal(r.tp, 4);
    assert_int_equal(r.ep, 8);
    assert_int_equal(r.dp, 2);
    assert_int_equal(r.pp, 2);
    assert_int_equal(r.replicas, 2);
    assert_int_equal(r.vocabulary_pad, 128);
    assert_int_equal(weir_replica_mesh_workers(&r), 32);
    assert_int_equal(weir_trainer_mesh_parse("", &t), WEIR_OK);
    assert_int_equal(weir_trainer_mesh_ranks(&t), 1);
}

static void a_wrong_token_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *line;
    } cases[] = {
        { "fsdp=8,xp=2", "trainer mesh: 'xp=2': expected KEY=NUMBER with one of fsdp, tp, ep, pp, "
                         "hsdp, sender, dense_whole" },
        { "fsdp", "trainer mesh: 'fsdp': expected KEY=NUMBER with one of fsdp, tp, ep, pp, hsdp, "
                  "sender, dense_whole" },
        { "fsdp=", "trainer mesh: 'fsdp=': expected a number from 1 to 65536" },
        { "fsdp=0", "trainer mesh: 'fsdp=0': expected a number from 1 to 65536" },
        { "dense_whole=2", "trainer mesh: 'dense_whole=2': expected a number from 0 to 1" },
        { "fsdp=-1", "trainer mesh: 'fsdp=-1': expected a number from 1 to 65536" },
        { "tp=2x", "trainer mesh: 'tp=2x': expected a number from 1 to 65536" },
        { "tp=99999999999999999999999", "trainer mesh: 'tp=99999999999999999999999': expected a "
                                        "number from 1 to 65536" },
        { "tp=2,tp=2", "trainer mesh: 'tp=2': tp is given twice" },
        { "tp=2,", "trainer mesh: nothing stands behind the last ','" },
        { "tp=65536,fsdp=65536,ep=65536,pp=65536", "trainer mesh: more than 65536 ranks" },
        { "hsdp=2,sender=2", "trainer mesh: 'sender=2': hsdp=2 has no such group" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_trainer_mesh t = { .tp = 77 };
        assert_int_equal(weir_trainer_mesh_parse(cases[i].text, &t), WEIR_ERR_INVALID);
        assert_string_equal(weir_last_error(), cases[i].line);
        assert_int_equal(t.tp, 77);
    }
    weir_replica_mesh r;
    assert_int_equal(weir_replica_mesh_parse("tp=4,ep=8", &r), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "replica mesh: 'ep=8' does not divide dp*tp = 4");
    assert_int_equal(weir_replica_mesh_parse(NULL, &r), WEIR_ERR_INVALID);
}

static void a_worker_has_its_place(void **state)
{
    (void)state;
    weir_replica_mesh mesh = { .tp = 4, .pp = 2, .dp = 3, .replicas = 2 };
    for (uint32_t w = 0; w < 48; w++) {
        weir_mesh_place place = weir_replica_mesh_place(&mesh, w);
        assert_int_equal(w % 24, (place.d * 2 + place.stage) * 4 + place.t);
    }
}

static void a_replica_is_told_by_its_text(void **state)
{
    (void)state;
    const uint32_t ids[] = { 0, 1, 1, 2 }, first[] = { 0, 2, 4 }, other[] = { 0, 3, 4 };
    weir_replica_mesh mesh = { .tp = 4, .ep = 2, .replicas = 7 };
    char text[WEIR_MESH_TEXT], mapped[WEIR_MESH_TEXT], shifted[WEIR_MESH_TEXT];
    assert_string_equal(weir_replica_mesh_text(&mesh, text),
                        "tp=4,ep=2,dp=1,pp=1,pad=64,experts=contiguous");
    mesh.expert_ids = ids;
    mesh.expert_first = first;
    weir_replica_mesh_text(&mesh, mapped);
    mesh.expert_first = other;
    weir_replica_mesh_text(&mesh, shifted);
    assert_string_not_equal(text, mapped);
    assert_string_not_equal(mapped, shifted);
    mesh.expert_first = first;
    mesh.replicas = 3;
    assert_string_equal(weir_replica_mesh_text(&mesh, shifted), mapped);
    const uint32_t in_order[] = { 0, 1, 2 };
    mesh.expert_ids = in_order; /* as without a map: two experts and one */
    mesh.expert_first = (const uint32_t[]){ 0, 2, 3 };
    assert_string_equal(weir_replica_mesh_text(&mesh, shifted), text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mesh_is_read_in_any_order),
        cmocka_unit_test(a_wrong_token_is_named),
        cmocka_unit_test(a_worker_has_its_place),
        cmocka_unit_test(a_replica_is_told_by_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
