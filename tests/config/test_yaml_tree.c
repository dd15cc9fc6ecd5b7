/* SPDX-License-Identifier: Apache-2.0 */
/* YAML as a tree: where nodes stand, what is refused, and that all of it is bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "config/yaml_tree.h"

static const weir_yaml_node *parse(weir_arena *arena, const char *text, weir_yaml_fault *fault)
{
    const weir_yaml_node *root = NULL;
    weir_arena_init(arena, 0);
    assert_int_equal(weir_yaml_parse(text, strlen(text), arena, &root, fault), WEIR_OK);
    return root;
}

static void refused(const char *text, uint32_t line, uint32_t column, const char *why)
{
    weir_arena arena;
    weir_yaml_fault fault;
    assert_null(parse(&arena, text, &fault));
    assert_non_null(fault.text);
    assert_non_null(fault.hint);
    if (strstr(fault.text, why) == NULL || fault.line != line || fault.column != column)
        fail_msg("expected %u:%u '%s', got %u:%u '%s'", line, column, why, fault.line, fault.column,
                 fault.text);
    weir_arena_close(&arena);
}

static void nodes_know_where_they_stand(void **state)
{
    (void)state;
    weir_arena arena;
    weir_yaml_fault fault;
    const weir_yaml_node *root = parse(&arena, "a: 1\n\nb:\n  c: 'x'\n  d: [y, {e: }]\n", &fault);
    assert_null(fault.text);
    assert_int_equal(root->kind, WEIR_YAML_BLOCK);
    const weir_yaml_node *a = root->first, *b = a->next;
    assert_string_equal(a->key, "a");
    assert_string_equal(a->text, "1");
    assert_true(a->plain);
    assert_int_equal(a->line, 1);
    assert_int_equal(a->column, 4);
    assert_int_equal(b->key_line, 3);
    assert_int_equal(b->line, 4);
    assert_int_equal(b->column, 3);
    assert_null(b->next);
    const weir_yaml_node *c = b->first, *d = c->next;
    assert_false(c->plain);
    assert_int_equal(c->line, 4);
    assert_int_equal(d->kind, WEIR_YAML_LIST);
    assert_null(d->first->key);
    assert_string_equal(d->first->text, "y");
    assert_int_equal(d->first->column, 7);
    const weir_yaml_node *e = d->first->next->first;
    assert_string_equal(e->key, "e");
    assert_int_equal(e->kind, WEIR_YAML_NOTHING);
    weir_arena_close(&arena);
}

static void nothing_is_only_nothing_without_quotes(void **state)
{
    (void)state;
    weir_arena arena;
    weir_yaml_fault fault;
    const weir_yaml_node *root = parse(&arena, "[~, null, NULL, '', 'null', nil]", &fault);
    static const weir_yaml_kind kinds[] = {
        WEIR_YAML_NOTHING, WEIR_YAML_NOTHING, WEIR_YAML_NOTHING,
        WEIR_YAML_SCALAR,  WEIR_YAML_SCALAR,  WEIR_YAML_SCALAR
    };
    size_t i = 0;
    for (const weir_yaml_node *node = root->first; node != NULL; node = node->next)
        assert_int_equal(node->kind, kinds[i++]);
    assert_int_equal(i, 6);
    weir_arena_close(&arena);
}

static void an_empty_document_has_no_root_and_no_fault(void **state)
{
    (void)state;
    static const char *const texts[] = { "", "\n\n", "# a comment\n" };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        weir_arena arena;
        weir_yaml_fault fault;
        assert_null(parse(&arena, texts[i], &fault));
        assert_null(fault.text);
        weir_arena_close(&arena);
    }
}

static void broken_yaml_is_told_with_its_line(void **state)
{
    (void)state;
    refused("a: 1\nb: [1, 2\n", 3, 1, "expected ',' or ']'");
    refused("a: 1\n b: 2\n", 2, 3, "mapping values are not allowed");
    refused("a:\n\t- b\n", 2, 1, "cannot start any token");
    refused("a: 'x\n", 2, 1, "unexpected end of stream");
    refused("a: 1\nbc: \xff\n", 2, 5, "UTF-8");
    refused("a: 1\nbc: \001\n", 2, 5, "control characters are not allowed");
}

static void what_a_configuration_needs_not_is_refused(void **state)
{
    (void)state;
    refused("a: &x 1\n", 1, 4, "an anchor, an alias or a tag");
    refused("a: 1\nb: *x\n", 2, 4, "an anchor, an alias or a tag");
    refused("a: !!str 1\n", 1, 4, "an anchor, an alias or a tag");
    refused("a: &x {b: 1}\n", 1, 4, "an anchor, an alias or a tag");
    refused("a: !x [1]\n", 1, 4, "an anchor, an alias or a tag");
    refused("a: 1\n---\nb: 1\n", 2, 1, "a second document");
    refused("? [a]\n: 1\n", 1, 3, "a key that is a list or a block");
    refused("a: \"x\\0y\"\n", 1, 4, "a zero byte");
}

static void depth_and_count_are_bounded(void **state)
{
    (void)state;
    char deep[WEIR_YAML_MAX_DEPTH + 2];
    memset(deep, '[', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = '\0';
    refused(deep, 1, WEIR_YAML_MAX_DEPTH + 1, "nested deeper");
    size_t n_bytes = (WEIR_YAML_MAX_NODES + 1) * 2;
    char *many = malloc(n_bytes + 1);
    assert_non_null(many);
    for (size_t i = 0; i < n_bytes; i += 2)
        memcpy(many + i, i == 0 ? "[1" : ",1", 2);
    many[n_bytes] = '\0';
    refused(many, 1, WEIR_YAML_MAX_NODES * 2, "more values");
    free(many);
}

static void memory_that_runs_out_is_told(void **state)
{
    (void)state;
    static const char text[] = "a: {b: [c, 'd']}\n";
    weir_status status = WEIR_ERR_NO_MEMORY;
    unsigned n_failures = 0;
    while (status != WEIR_OK) {
        weir_arena arena;
        weir_yaml_fault fault;
        const weir_yaml_node *root;
        weir_arena_init(&arena, 0);
        weir_alloc_fail_at(++n_failures);
        status = weir_yaml_parse(text, strlen(text), &arena, &root, &fault);
        weir_alloc_fail_at(0);
        if (status != WEIR_OK)
            assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        weir_arena_close(&arena);
    }
    assert_true(n_failures > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nodes_know_where_they_stand),
        cmocka_unit_test(nothing_is_only_nothing_without_quotes),
        cmocka_unit_test(an_empty_document_has_no_root_and_no_fault),
        cmocka_unit_test(broken_yaml_is_told_with_its_line),
        cmocka_unit_test(what_a_configuration_needs_not_is_refused),
        cmocka_unit_test(depth_and_count_are_bounded),
        cmocka_unit_test(memory_that_runs_out_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
