/* SPDX-License-Identifier: Apache-2.0 */
/* Registries of all ranks of random meshes say what the meshes say: element by element, and in the
 * plans that are made from them. */
#include "fleet_case.h"

#include "base/alloc.h"
#include "weir/descriptor.h"

#define MAX_RANKS 1024

/* A random fleet, and a name for each of its sources. */
typedef struct named_case {
    fleet_case fleet;
    weir_map_entry entries[CASE_MAX];
    weir_tensor *sources;
    char (*names)[64];
    weir_described_model model;
} named_case;

static void name_sources(named_case *n)
{
    size_t n_sources = 0, at = 0;
    for (size_t i = 0; i < n->fleet.n_tensors; i++) {
        const weir_fleet_tensor *t = &n->fleet.tensors[i];
        n_sources += t->n_sources * (t->n_experts > 0 && !t->stacked ? t->n_experts : 1);
    }
    n->sources = calloc(n_sources, sizeof(*n->sources));
    n->names = calloc(n_sources, sizeof(*n->names));
    assert_non_null(n->sources);
    assert_non_null(n->names);
    for (size_t i = 0; i < n->fleet.n_tensors; i++) {
        const weir_fleet_tensor *t = &n->fleet.tensors[i];
        uint32_t n_apart = t->n_experts > 0 && !t->stacked ? t->n_experts : 0;
        n->entries[i] = (weir_map_entry){
            .name = "x", .sources = &n->sources[at], .n_sources = t->n_sources, .n_experts = n_apart
        };
        for (uint32_t k = 0; k < t->n_sources * (n_apart > 0 ? n_apart : 1); k++, at++) {
            uint64_t rows = t->source_rows[k % t->n_sources];
            snprintf(n->names[at], sizeof(n->names[at]), "t%zu.x%u.s%u", i, k / t->n_sources,
                     k % t->n_sources);
            n->sources[at] = (weir_tensor){ .name = n->names[at],
                                            .dtype = WEIR_BF16,
                                            .shape = { 2, { rows, t->n_cols } } };
            if (t->stacked)
                n->sources[at].shape = (weir_shape){ 3, { t->n_experts, rows, t->n_cols } };
        }
    }
    n->model = (weir_described_model){ n->entries, n->fleet.tensors, n->fleet.n_tensors };
}

static void named_init(named_case *n, uint64_t seed)
{
    memset(n, 0, sizeof(*n));
    case_init(&n->fleet, seed);
    name_sources(n);
}

static void named_end(named_case *n)
{
    free(n->sources);
    free(n->names);
}

/* Registries of all ranks, written and read again as they travel. */
typedef struct fleet_registries {
    weir_publisher publishers[MAX_RANKS];
    weir_tensor_registry *registries[MAX_RANKS];
    size_t n;
} fleet_registries;

/* Whether a rank that tensor parallelism cuts may hold several boxes of a source. */
static bool has_cut_parts(const fleet_case *c)
{
    bool found = false;
    for (size_t i = 0; i < c->n_tensors && c->trainer.tp > 1; i++)
        found |=
            c->tensors[i].cut == WEIR_CUT_COLUMN && c->tensors[i].n_parts > c->tensors[i].n_sources;
    return found;
}

/* False where a rank holds what no registry can say. */
static bool publish(const named_case *n, fleet_registries *all)
{
    uint32_t n_ranks = weir_trainer_mesh_ranks(&n->fleet.trainer);
    for (all->n = 0; all->n < n_ranks; all->n++) {
        uint32_t r = (uint32_t)all->n;
        weir_tensor_registry *made;
        char *text;
        weir_status status =
            weir_tensor_registry_of_mesh(&n->model, &n->fleet.trainer, r, 3, &made);
        if (has_cut_parts(&n->fleet) && status == WEIR_ERR_UNSUPPORTED) {
            assert_non_null(strstr(weir_last_error(), "a registry takes one"));
            return false;
        }
        assert_int_equal(status, WEIR_OK);
        assert_int_equal(weir_tensor_registry_encode(made, &text), WEIR_OK);
        assert_int_equal(weir_tensor_registry_decode(text, strlen(text), &all->registries[r]),
                         WEIR_OK);
        all->publishers[r] = (weir_publisher){ "w", r, all->registries[r] };
        weir_tensor_registry_close(made);
        weir_string_free(text);
    }
    return true;
}

static void unpublish(fleet_registries *all)
{
    for (size_t r = 0; r < all->n; r++)
        weir_tensor_registry_close(all->registries[r]);
}

/* The ranks of the boxes that have this element are those that hold it, each once. */
static void assert_holders(const named_case *n, const weir_held *held, size_t n_held,
                           const weir_held *at)
{
    const weir_fleet_tensor *t = &n->fleet.tensors[at->tensor];
    uint32_t n_ranks = weir_trainer_mesh_ranks(&n->fleet.trainer);
    uint64_t holders = 0, expected = 0;
    for (size_t h = 0; h < n_held; h++) {
        const weir_held *b = &held[h];
        if (b->tensor != at->tensor || b->source != at->source || b->expert_lo > at->expert_lo ||
            at->expert_lo >= b->expert_hi || b->row_lo > at->row_lo || at->row_lo >= b->row_hi ||
            b->col_lo > at->col_lo || at->col_lo >= b->col_hi)
            continue;
        assert_true(
            case_holds(&n->fleet, t, b->rank, at->source, at->expert_lo, at->row_lo, at->col_lo));
        holders++;
    }
    for (uint32_t r = 0; r < n_ranks; r++)
        expected += case_holds(&n->fleet, t, r, at->source, at->expert_lo, at->row_lo, at->col_lo);
    assert_int_equal(holders, expected);
}

/* Elements of every source and expert: the first, the last and two between. */
static void assert_same_holders(const named_case *n, const weir_held *held, size_t n_held)
{
    for (uint32_t i = 0; i < n->fleet.n_tensors; i++) {
        const weir_fleet_tensor *t = &n->fleet.tensors[i];
        uint32_t n_experts = t->n_experts > 0 ? t->n_experts : 1;
        for (uint32_t k = 0; k < t->n_sources * n_experts * 4; k++) {
            weir_held at = { .tensor = i,
                             .source = k / 4 % t->n_sources,
                             .expert_lo = k / 4 / t->n_sources };
            at.row_lo = (t->source_rows[at.source] - 1) * (k % 4) / 3;
            at.col_lo = (t->n_cols - 1) * (k * 7 % 4) / 3;
            assert_holders(n, held, n_held, &at);
        }
    }
}

static void summarise(const named_case *n, const weir_held *held, size_t n_held,
                      weir_fleet_summary *out, uint64_t *received)
{
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet = NULL;
    args.tensors = n->fleet.tensors;
    args.n_tensors = n->fleet.n_tensors;
    args.trainer = held == NULL ? &n->fleet.trainer : NULL;
    args.held = held;
    args.n_held = n_held;
    args.replica = &n->fleet.replica;
    if (weir_fleet_open(&args, &fleet) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    assert_int_equal(weir_fleet_summarise(fleet, out, NULL, NULL, received), WEIR_OK);
    weir_fleet_close(fleet);
}

static void registries_of_a_mesh_plan_as_the_mesh_does(void **state)
{
    (void)state;
    static named_case n;
    static fleet_registries all;
    static uint64_t by_mesh[4096], by_registries[4096];
    size_t n_boxes = 0, n_ids = 0, n_unsaid = 0;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        weir_fleet_summary mesh, registries;
        weir_held *held;
        size_t n_held;
        named_init(&n, seed);
        uint32_t n_workers = weir_replica_mesh_workers(&n.fleet.replica);
        if (!publish(&n, &all)) {
            n_unsaid++;
            unpublish(&all);
            named_end(&n);
            continue;
        }
        assert_int_equal(weir_held_of_registries(&n.model, all.publishers, all.n, &held, &n_held),
                         WEIR_OK);
        assert_same_holders(&n, held, n_held);
        summarise(&n, NULL, 0, &mesh, by_mesh);
        summarise(&n, held, n_held, &registries, by_registries);
        assert_int_equal(mesh.bytes, registries.bytes);
        assert_memory_equal(by_mesh, by_registries, n_workers * sizeof(by_mesh[0]));
        for (size_t r = 0; r < all.n; r++) {
            for (size_t i = 0; i < all.registries[r]->n_tensors; i++) {
                const weir_tensor_descriptor *d = &all.registries[r]->tensors[i];
                n_boxes += d->placement == WEIR_PLACEMENT_BOX;
                n_ids += d->placement == WEIR_PLACEMENT_SHARD && !d->has_range;
            }
        }
        weir_held_free(held);
        unpublish(&all);
        named_end(&n);
    }
    assert_true(n_boxes > 0 && n_ids > 0); /* or the cases were too easy */
    assert_true(n_unsaid > 0 && n_unsaid < 150);
}

/* ---- one model -------------------------------------------------------------------------------*/

static const weir_tensor two_sources[] = {
    { .name = "a", .dtype = WEIR_BF16, .shape = { 2, { 16, 8 } } },
    { .name = "stack", .dtype = WEIR_BF16, .shape = { 3, { 6, 4, 8 } } },
};

typedef struct small_model {
    weir_map_entry entries[2];
    weir_fleet_tensor tensors[2];
    weir_described_model model;
} small_model;

static void small_init(small_model *m)
{
    memset(m, 0, sizeof(*m));
    for (int i = 0; i < 2; i++) {
        m->entries[i] = (weir_map_entry){ .sources = &two_sources[i], .n_sources = 1 };
        m->tensors[i] = (weir_fleet_tensor){ .name = two_sources[i].name,
                                             .conversion = &case_conversions[3],
                                             .cut = WEIR_CUT_COLUMN,
                                             .source_bits = 16,
                                             .n_cols = 8,
                                             .n_sources = 1,
                                             .n_parts = 1,
                                             .source_rows = { i == 0 ? 16 : 4 },
                                             .parts = { { 0, 0, 0, i == 0 ? 16 : 4 } } };
    }
    m->tensors[1].n_experts = 6;
    m->tensors[1].stacked = true;
    m->model = (weir_described_model){ m->entries, m->tensors, 2 };
}

static void each_part_is_said_in_the_plainest_words(void **state)
{
    (void)state;
    static const struct {
        weir_held held[2];
        weir_placement placement;
        uint32_t axis;
        bool has_range;
        size_t n_ids;
    } cases[] = {
        { { { 0, 0, 0, 0, 1, 0, 16, 0, 8 } }, WEIR_PLACEMENT_REPLICATE, 0, false, 0 },
        { { { 0, 0, 0, 0, 1, 4, 8, 0, 8 } }, WEIR_PLACEMENT_SHARD, 0, true, 0 },
        { { { 0, 0, 0, 0, 1, 0, 16, 0, 4 } }, WEIR_PLACEMENT_SHARD, 1, true, 0 },
        { { { 0, 0, 0, 0, 1, 4, 8, 0, 4 } }, WEIR_PLACEMENT_BOX, 0, false, 0 },
        { { { 0, 1, 0, 0, 6, 0, 4, 0, 8 } }, WEIR_PLACEMENT_REPLICATE, 0, false, 6 },
        { { { 0, 1, 0, 2, 4, 0, 4, 0, 8 } }, WEIR_PLACEMENT_SHARD, 0, true, 2 },
        { { { 0, 1, 0, 0, 1, 0, 4, 0, 8 }, { 0, 1, 0, 3, 4, 0, 4, 0, 8 } },
          WEIR_PLACEMENT_SHARD,
          0,
          false,
          2 },
        { { { 0, 1, 0, 0, 6, 0, 2, 0, 8 } }, WEIR_PLACEMENT_SHARD, 1, true, 6 },
        { { { 0, 1, 0, 0, 1, 0, 2, 0, 8 }, { 0, 1, 0, 3, 4, 0, 2, 0, 8 } },
          WEIR_PLACEMENT_BOX,
          0,
          false,
          2 },
    };
    small_model m;
    small_init(&m);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_tensor_registry *registry;
        size_t n_held = cases[i].held[1].row_hi > 0 ? 2 : 1;
        assert_int_equal(
            weir_tensor_registry_of_held(&m.model, cases[i].held, n_held, 0, 1, &registry),
            WEIR_OK);
        assert_int_equal(registry->n_tensors, 1);
        const weir_tensor_descriptor *d = registry->tensors;
        assert_int_equal(d->placement, cases[i].placement);
        assert_int_equal(d->shard_axis, cases[i].axis);
        assert_int_equal(d->has_range, cases[i].has_range);
        assert_int_equal(d->n_expert_ids, cases[i].n_ids);
        weir_tensor_registry_close(registry);
        assert_int_equal(
            weir_tensor_registry_of_held(&m.model, cases[i].held, n_held, 7, 1, &registry),
            WEIR_OK);
        assert_int_equal(registry->n_tensors, 0); /* another rank's */
        weir_tensor_registry_close(registry);
    }
}

static void what_a_registry_cannot_say_is_refused(void **state)
{
    (void)state;
    small_model m;
    weir_tensor_registry *registry = NULL;
    weir_trainer_mesh mesh = { .fsdp = 2 };
    const weir_held several[] = { { 0, 0, 0, 0, 1, 0, 4, 0, 8 }, { 0, 0, 0, 0, 1, 8, 12, 0, 8 } };
    const weir_held outside[] = { { 0, 0, 0, 0, 1, 0, 17, 0, 8 } };
    small_init(&m);
    assert_int_equal(weir_tensor_registry_of_held(&m.model, several, 2, 0, 1, &registry),
                     WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "several boxes of source 0"));
    assert_int_equal(weir_tensor_registry_of_held(&m.model, outside, 1, 0, 1, &registry),
                     WEIR_ERR_INVALID);
    assert_int_equal(weir_tensor_registry_of_mesh(&m.model, &mesh, 2, 1, &registry),
                     WEIR_ERR_INVALID);
    m.entries[0].n_sources = 2;
    assert_int_equal(weir_tensor_registry_of_held(&m.model, NULL, 0, 0, 1, &registry),
                     WEIR_ERR_INVALID);
    assert_null(registry);
}

/* A use that ties two tensors to one source is one descriptor, and comes back as both. */
static void a_tied_source_is_described_once(void **state)
{
    (void)state;
    small_model m;
    weir_tensor_registry *registry;
    weir_trainer_mesh mesh = { .fsdp = 2 };
    weir_held *held;
    size_t n;
    small_init(&m);
    m.entries[1] = m.entries[0];
    m.tensors[1] = m.tensors[0];
    assert_int_equal(weir_tensor_registry_of_mesh(&m.model, &mesh, 1, 1, &registry), WEIR_OK);
    assert_int_equal(registry->n_tensors, 1);
    assert_int_equal(registry->tensors[0].range_lo, 8);
    weir_publisher publisher = { "w", 1, registry };
    assert_int_equal(weir_held_of_registries(&m.model, &publisher, 1, &held, &n), WEIR_OK);
    assert_int_equal(n, 2);
    assert_int_equal(held[0].tensor + held[1].tensor, 1);
    weir_held_free(held);
    weir_tensor_registry_close(registry);
    m.tensors[1].cut = WEIR_CUT_ROW; /* one name, two places */
    mesh = (weir_trainer_mesh){ .tp = 2 };
    registry = NULL;
    assert_int_equal(weir_tensor_registry_of_mesh(&m.model, &mesh, 1, 1, &registry),
                     WEIR_ERR_LAYOUT);
    assert_non_null(strstr(weir_last_error(), "two uses of it put different parts on rank 1"));
    assert_null(registry);
}

static void out_of_memory_leaves_nothing_behind(void **state)
{
    (void)state;
    small_model m;
    weir_trainer_mesh mesh = { .fsdp = 2 };
    weir_status status = WEIR_ERR_NO_MEMORY;
    small_init(&m);
    for (uint64_t at = 1; status == WEIR_ERR_NO_MEMORY; at++) {
        weir_tensor_registry *registry = NULL;
        assert_true(at < 60);
        weir_alloc_fail_at(at);
        status = weir_tensor_registry_of_mesh(&m.model, &mesh, 0, 1, &registry);
        weir_alloc_fail_at(0);
        weir_tensor_registry_close(registry);
    }
    assert_int_equal(status, WEIR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registries_of_a_mesh_plan_as_the_mesh_does),
        cmocka_unit_test(each_part_is_said_in_the_plainest_words),
        cmocka_unit_test(what_a_registry_cannot_say_is_refused),
        cmocka_unit_test(a_tied_source_is_described_once),
        cmocka_unit_test(out_of_memory_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
