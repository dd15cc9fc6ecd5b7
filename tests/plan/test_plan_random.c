/* SPDX-License-Identifier: Apache-2.0 */
/* test_plan_random.c - parameters cut at random, held by sources at random, beside shards of other
 * workers: carried out with memcpy, the copies give each parameter, and every fault is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "weir/plan.h"

#define N_CASES 3000
#define N_PARAMETERS 3
#define N_SOURCES 4
#define MAX_SHARDS 400
#define MAX_BYTES 2048
#define MAX_ELEMENTS 1024
#define POISON 0xa5

typedef struct parameter_case {
    uint64_t n_padding_rows;
    unsigned char bytes[MAX_BYTES];  /* what it is to hold */
    unsigned char filled[MAX_BYTES]; /* what the copies wrote */
    unsigned char packed[MAX_BYTES]; /* which bytes have been packed */
    uint64_t n_bytes, n_filled_bytes;
} parameter_case;

typedef struct random_case {
    uint64_t seed;
    weir_mesh_place place;
    weir_parameter wanted[N_PARAMETERS];
    parameter_case parameters[N_PARAMETERS];
    weir_shard shards[N_SOURCES][MAX_SHARDS];
    weir_plan_source sources[N_SOURCES];
    unsigned char regions[N_SOURCES][1 << 15];
    uint64_t region_bytes[N_SOURCES];
} random_case;

static uint64_t below(random_case *c, uint64_t n)
{
    c->seed ^= c->seed << 13;
    c->seed ^= c->seed >> 7;
    c->seed ^= c->seed << 17;
    return (c->seed >> 11) % n;
}

/* ---- boxes, element by element ---------------------------------------------------------------*/

/* Linear numbers of a box's elements, in order. */
static size_t list_elements(const weir_shape *shape, const weir_box *box, uint64_t *elements)
{
    uint64_t n = 1;
    weir_shape extent = weir_box_shape(box);
    assert_int_equal(weir_shape_elements(&extent, &n), WEIR_OK);
    assert_true(n <= MAX_ELEMENTS);
    for (uint64_t e = 0; e < n; e++) {
        uint64_t rest = e, stride = 1, at = 0;
        for (uint32_t d = shape->rank; d-- > 0; stride *= shape->dim[d]) {
            at += (box->lo[d] + rest % extent.dim[d]) * stride;
            rest /= extent.dim[d];
        }
        elements[e] = at;
    }
    return n;
}

/* Whether the elements are runs that begin at equal distances. */
static bool evenly_spaced(const uint64_t *elements, size_t n)
{
    size_t run = 1;
    while (run < n && elements[run] == elements[0] + run)
        run++;
    if (n % run != 0)
        return false;
    uint64_t pitch = run < n ? elements[run] - elements[0] : 0;
    for (size_t i = 0; i < n; i++) {
        if (elements[i] != elements[0] + i / run * pitch + i % run)
            return false;
    }
    return true;
}

/* Where F4 may be cut: between pairs on the last axis. */
static uint64_t grain_of(const weir_parameter *p, uint32_t axis)
{
    return p->dtype == WEIR_F4 && axis + 1 == p->shape.rank ? 2 : 1;
}

/* ---- a case ----------------------------------------------------------------------------------*/

static void add_parameter(random_case *c, size_t i)
{
    static const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F8_E4M3, WEIR_F32, WEIR_F4 };
    static const char *const names[N_PARAMETERS] = { "a.weight", "b.weight", "c.weight" };
    weir_parameter *p = &c->wanted[i];
    parameter_case *of = &c->parameters[i];
    *p = (weir_parameter){
        names[i], dtypes[below(c, 4)], { 0, { 0 } }, "hf_raw", "{}", i, 0, false
    };
    p->shape.rank = (uint32_t)below(c, 5);
    if (p->dtype == WEIR_F4 && p->shape.rank == 0)
        p->dtype = WEIR_F32;
    for (uint32_t d = 0; d < p->shape.rank; d++)
        p->shape.dim[d] = grain_of(p, d) * (1 + below(c, d + 1 < p->shape.rank ? 4 : 5));
    assert_int_equal(weir_tensor_bytes(p->dtype, &p->shape, &of->n_bytes), WEIR_OK);
    assert_true(of->n_bytes <= MAX_BYTES);
    of->n_padding_rows = 0;
    if (p->shape.rank > 0 && grain_of(p, 0) == 1 && below(c, 3) == 0)
        of->n_padding_rows = below(c, p->shape.dim[0] + 1);
    of->n_filled_bytes = of->n_bytes;
    if (p->shape.rank > 0)
        of->n_filled_bytes = of->n_bytes * (p->shape.dim[0] - of->n_padding_rows) / p->shape.dim[0];
    for (uint64_t b = 0; b < of->n_bytes; b++)
        of->bytes[b] = b < of->n_filled_bytes ? (unsigned char)below(c, 255) : POISON;
    memset(of->filled, POISON, sizeof(of->filled));
    memset(of->packed, 0, sizeof(of->packed));
}

/* Of one worker, or of all of those that stand alike in some direction. */
static weir_mesh_place matching_place(random_case *c)
{
    weir_mesh_place place = c->place;
    place.stage = below(c, 3) == 0 ? WEIR_ANY : place.stage;
    place.d = below(c, 3) == 0 ? WEIR_ANY : place.d;
    place.t = below(c, 3) == 0 ? WEIR_ANY : place.t;
    return place;
}

static weir_shard *append_shard(random_case *c, size_t source, size_t parameter,
                                const weir_box *box)
{
    const weir_parameter *p = &c->wanted[parameter];
    weir_plan_source *of = &c->sources[source];
    assert_true(of->n_shards < MAX_SHARDS);
    weir_shard *shard = &c->shards[source][of->n_shards++];
    *shard = (weir_shard){ .name = p->name,
                           .dtype = p->dtype,
                           .global_shape = p->shape,
                           .box = *box,
                           .place = matching_place(c),
                           .n_padding_rows = c->parameters[parameter].n_padding_rows,
                           .compile_target = "hf_raw",
                           .compile_metadata = "{}",
                           .region = (uint32_t)source };
    return shard;
}

/* Puts the box's bytes into the source's region, some way behind what is there. */
static void hold_box(random_case *c, size_t source, size_t parameter, const weir_box *box)
{
    const weir_parameter *p = &c->wanted[parameter];
    weir_shard *shard = append_shard(c, source, parameter, box);
    uint64_t elements[MAX_ELEMENTS];
    uint64_t grain = p->dtype == WEIR_F4 ? 2 : 1, bytes = weir_dtype_bits(p->dtype) * grain / 8;
    weir_shape extent = weir_box_shape(box);
    c->region_bytes[source] += below(c, 16);
    shard->offset = c->region_bytes[source];
    assert_int_equal(weir_tensor_bytes(p->dtype, &extent, &shard->n_bytes), WEIR_OK);
    if (shard->n_bytes == 0)
        return;
    size_t n = list_elements(&p->shape, box, elements);
    assert_true(shard->offset + shard->n_bytes <= sizeof(c->regions[source]));
    for (size_t e = 0; e < n; e += grain)
        memcpy(&c->regions[source][shard->offset + e / grain * bytes],
               &c->parameters[parameter].bytes[elements[e] / grain * bytes], bytes);
    weir_digest_add(&shard->digest, &c->regions[source][shard->offset], 1, shard->n_bytes);
    c->region_bytes[source] += shard->n_bytes;
}

/* Cuts the box along axis d somewhere; false: it cannot be. */
static bool cut_box(random_case *c, const weir_parameter *p, weir_box *box, uint32_t d,
                    weir_box *rest)
{
    uint64_t grain = grain_of(p, d), n = (box->hi[d] - box->lo[d]) / grain;
    if (n < 2)
        return false;
    *rest = *box;
    rest->lo[d] = box->hi[d] = box->lo[d] + grain * (1 + below(c, n - 1));
    return true;
}

/* Cuts at random, and further where the bytes would not be evenly spaced. */
static void cut_and_hold(random_case *c, size_t parameter, weir_box box, int depth)
{
    const weir_parameter *p = &c->wanted[parameter];
    weir_box rest;
    uint64_t elements[MAX_ELEMENTS];
    bool even = evenly_spaced(elements, list_elements(&p->shape, &box, elements));
    for (int i = 0; i < 32 && p->shape.rank > 0 && (!even || below(c, 4) < (uint64_t)depth); i++) {
        if (!cut_box(c, p, &box, (uint32_t)below(c, p->shape.rank), &rest))
            continue;
        cut_and_hold(c, parameter, rest, depth - 1);
        even = evenly_spaced(elements, list_elements(&p->shape, &box, elements));
    }
    assert_true(even);
    size_t source = below(c, N_SOURCES);
    hold_box(c, source, parameter, &box);
    if (below(c, 8) == 0)
        hold_box(c, (source + 1 + below(c, N_SOURCES - 1)) % N_SOURCES, parameter, &box);
}

static void hold_parameter(random_case *c, size_t parameter)
{
    weir_shape filled = c->wanted[parameter].shape;
    if (filled.rank > 0)
        filled.dim[0] -= c->parameters[parameter].n_padding_rows;
    weir_box whole = weir_box_whole(&filled);
    if (filled.rank > 0 && filled.dim[0] == 0)
        hold_box(c, below(c, N_SOURCES), parameter, &whole);
    else
        cut_and_hold(c, parameter, whole, 3);
}

/* Another worker's, with nothing right about it. */
static void add_foreigner(random_case *c)
{
    size_t parameter = below(c, N_PARAMETERS);
    weir_box box = weir_box_whole(&c->wanted[parameter].shape);
    weir_shard *shard = append_shard(c, below(c, N_SOURCES), parameter, &box);
    uint32_t *fields[] = { &shard->place.stage, &shard->place.d, &shard->place.t };
    const uint32_t own[] = { c->place.stage, c->place.d, c->place.t };
    size_t which = below(c, 3);
    *fields[which] = own[which] + 1 + (uint32_t)below(c, 5);
    shard->n_bytes = below(c, 100);
    shard->name = below(c, 2) == 0 ? shard->name : "of another stage";
    shard->dtype = (weir_dtype)below(c, 30);
}

static random_case *make_case(uint64_t number)
{
    random_case *c = calloc(1, sizeof(*c));
    c->seed = (number + 1) * 0x9e3779b97f4a7c15ull;
    c->place =
        (weir_mesh_place){ (uint32_t)below(c, 3), (uint32_t)below(c, 3), (uint32_t)below(c, 3) };
    static const char *const workers[N_SOURCES] = { "rank 0", "rank 1", "rank 2", "rank 3" };
    for (size_t s = 0; s < N_SOURCES; s++)
        c->sources[s] = (weir_plan_source){ workers[s], c->shards[s], 0 };
    for (size_t i = 0; i < N_PARAMETERS; i++)
        add_parameter(c, i);
    for (size_t i = 0; i < N_PARAMETERS; i++) {
        hold_parameter(c, i);
        while (below(c, 3) == 0)
            add_foreigner(c);
    }
    return c;
}

static weir_status open_case(const random_case *c, weir_plan **out)
{
    return weir_plan_open(c->wanted, N_PARAMETERS, &c->place, c->sources, N_SOURCES, out);
}

/* ---- carried out -----------------------------------------------------------------------------*/

static void carry_out(random_case *c, const weir_plan_copy *copy)
{
    parameter_case *to = &c->parameters[copy->parameter];
    assert_int_equal(copy->n_bytes % copy->run_bytes, 0);
    for (uint64_t r = 0; r < copy->n_bytes / copy->run_bytes; r++) {
        uint64_t at = copy->parameter_offset + r * copy->pitch_bytes;
        assert_true(at + copy->run_bytes <= to->n_filled_bytes);
        for (uint64_t b = 0; b < copy->run_bytes; b++)
            assert_int_equal(to->filled[at + b], POISON);
        memcpy(&to->filled[at],
               &c->regions[copy->region][copy->source_offset + r * copy->run_bytes],
               copy->run_bytes);
    }
    for (uint64_t b = 0; b < copy->n_bytes; b++)
        assert_int_equal(to->packed[copy->packed_offset + b]++, 0);
}

/* Copies of one parameter are packed in the order of where they begin. */
static void assert_packed_in_order(const weir_plan_copy *copies, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < n; k++) {
            if (copies[i].parameter != copies[k].parameter)
                continue;
            assert_int_equal(copies[i].parameter_offset < copies[k].parameter_offset,
                             copies[i].packed_offset < copies[k].packed_offset);
        }
    }
}

static void copies_give_every_parameter(void **state)
{
    (void)state;
    size_t n_all = 0, n_strided = 0;
    for (uint64_t number = 0; number < N_CASES; number++) {
        random_case *c = make_case(number);
        weir_plan *plan = NULL;
        size_t n;
        uint64_t n_bytes = 0;
        if (open_case(c, &plan) != WEIR_OK)
            fail_msg("case %d: %s", (int)number, weir_last_error());
        const weir_plan_copy *copies = weir_plan_copies(plan, &n);
        for (size_t i = 0; i < n; i++) {
            carry_out(c, &copies[i]);
            n_strided += copies[i].pitch_bytes != 0;
        }
        assert_packed_in_order(copies, n);
        for (size_t i = 0; i < N_PARAMETERS; i++) {
            const parameter_case *of = &c->parameters[i];
            assert_memory_equal(of->filled, of->bytes, of->n_bytes);
            for (uint64_t b = 0; b < MAX_BYTES; b++)
                assert_int_equal(of->packed[b], b < of->n_filled_bytes);
            n_bytes += of->n_filled_bytes;
        }
        assert_int_equal(weir_plan_bytes(plan), n_bytes);
        n_all += n;
        weir_plan_close(plan);
        free(c);
    }
    print_message("%d cases, %zu copies, %zu of several runs\n", N_CASES, n_all, n_strided);
    assert_true(n_strided > N_CASES);
}

/* ---- faults ----------------------------------------------------------------------------------*/

static bool is_own(const random_case *c, const weir_shard *shard)
{
    return weir_mesh_place_matches(&shard->place, &c->place);
}

/* Whether another shard of the same box stands in for it. */
static bool has_duplicate(const random_case *c, const weir_shard *shard)
{
    for (size_t s = 0; s < N_SOURCES; s++) {
        for (size_t i = 0; i < c->sources[s].n_shards; i++) {
            const weir_shard *other = &c->shards[s][i];
            if (other != shard && is_own(c, other) && strcmp(other->name, shard->name) == 0 &&
                memcmp(&other->box, &shard->box, sizeof(shard->box)) == 0)
                return true;
        }
    }
    return false;
}

/* A shard that the plan needs; NULL: the case has none that is not empty. */
static weir_shard *pick_needed(random_case *c, size_t *out_source)
{
    for (int i = 0; i < 200; i++) {
        size_t s = below(c, N_SOURCES);
        if (c->sources[s].n_shards == 0)
            continue;
        weir_shard *shard = &c->shards[s][below(c, c->sources[s].n_shards)];
        *out_source = s;
        if (is_own(c, shard) && shard->n_bytes > 0 && !has_duplicate(c, shard))
            return shard;
    }
    return NULL;
}

static void remove_shard(random_case *c, size_t source, weir_shard *shard)
{
    *shard = c->shards[source][--c->sources[source].n_shards];
}

static void duplicate_shard(random_case *c, size_t source, weir_shard *shard)
{
    c->shards[source][c->sources[source].n_shards++] = *shard;
}

/* Up by one on some axis: beyond the end, or over its neighbour. */
static bool shift_shard(random_case *c, weir_shard *shard)
{
    if (shard->box.rank == 0)
        return false;
    uint32_t d = (uint32_t)below(c, shard->box.rank);
    shard->box.lo[d]++;
    shard->box.hi[d]++;
    return true;
}

static void mistag_shard(random_case *c, weir_shard *shard)
{
    switch (below(c, 7)) {
    case 0:
        shard->compile_target = "cutlass_fp8";
        break;
    case 1:
        shard->compile_metadata = "{\"dtype\":\"e4m3\"}";
        break;
    case 2:
        shard->dtype = WEIR_I16;
        break;
    case 3:
        shard->global_shape.rank++;
        break;
    case 4:
        shard->n_bytes++;
        break;
    case 5:
        shard->place.stage = c->place.stage + 1;
        break;
    default:
        shard->n_padding_rows = UINT64_MAX;
        break;
    }
}

static void every_fault_is_refused_by_name(void **state)
{
    (void)state;
    size_t n_faults = 0;
    for (uint64_t number = 0; number < N_CASES; number++) {
        random_case *c = make_case(number);
        weir_plan *plan = NULL;
        size_t source;
        weir_shard *shard = pick_needed(c, &source);
        bool broken = shard != NULL;
        const char *name = broken ? shard->name : "";
        if (broken && number % 4 == 0)
            remove_shard(c, source, shard);
        else if (broken && number % 4 == 1)
            duplicate_shard(c, source, shard);
        else if (broken && number % 4 == 2)
            broken = shift_shard(c, shard);
        else if (broken)
            mistag_shard(c, shard);
        if (broken) {
            n_faults++;
            if (open_case(c, &plan) != WEIR_ERR_LAYOUT)
                fail_msg("case %d: %s is not refused", (int)number, name);
            assert_null(plan);
            assert_int_equal(strncmp(weir_last_error(), name, strlen(name)), 0);
        }
        free(c);
    }
    print_message("%zu faults\n", n_faults);
    assert_true(n_faults > N_CASES / 2);
}

static void bytes_that_differ_between_sources_are_refused(void **state)
{
    (void)state;
    size_t n_found = 0;
    for (uint64_t number = 0; number < N_CASES && n_found < 200; number++) {
        random_case *c = make_case(number);
        weir_plan *plan = NULL;
        for (size_t i = 0; i < c->sources[0].n_shards; i++) {
            weir_shard *shard = &c->shards[0][i];
            if (!is_own(c, shard) || !has_duplicate(c, shard))
                continue;
            n_found++;
            shard->digest.product ^= 1;
            assert_int_equal(open_case(c, &plan), WEIR_ERR_LAYOUT);
            assert_non_null(strstr(weir_last_error(), " differs between rank 0 and rank "));
            break;
        }
        free(c);
    }
    assert_true(n_found > 100);
}

/* A box that is not evenly spaced is no copy, though its elements would fit. */
static void uneven_boxes_are_refused_and_no_others(void **state)
{
    (void)state;
    size_t n_uneven = 0;
    for (uint64_t number = 0; number < N_CASES; number++) {
        random_case *c = make_case(number);
        weir_plan *plan = NULL;
        weir_parameter *p = &c->wanted[0];
        uint64_t elements[MAX_ELEMENTS];
        *p = (weir_parameter){
            "a", WEIR_F8_E4M3, { 4, { 3, 3, 3, 3 } }, "hf_raw", "{}", 0, 0, false
        };
        weir_box box = { .rank = 4 };
        for (uint32_t d = 0; d < 4; d++) {
            box.lo[d] = below(c, 3);
            box.hi[d] = box.lo[d] + 1 + below(c, 3 - box.lo[d]);
        }
        weir_shard shard = { .name = "a",
                             .dtype = WEIR_F8_E4M3,
                             .global_shape = p->shape,
                             .box = box,
                             .compile_target = "hf_raw",
                             .compile_metadata = "{}" };
        weir_shape extent = weir_box_shape(&box);
        assert_int_equal(weir_tensor_bytes(shard.dtype, &extent, &shard.n_bytes), WEIR_OK);
        const weir_plan_source source = { "rank 0", &shard, 1 };
        const weir_mesh_place lone = { 0, 0, 0 };
        bool even = evenly_spaced(elements, list_elements(&p->shape, &box, elements));
        weir_status status = weir_plan_open(p, 1, &lone, &source, 1, &plan);
        bool called_uneven =
            status != WEIR_OK && strstr(weir_last_error(), "equal distances") != NULL;
        assert_int_equal(called_uneven, !even);
        weir_plan_close(plan);
        n_uneven += !even;
        free(c);
    }
    assert_true(n_uneven > N_CASES / 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_give_every_parameter),
        cmocka_unit_test(every_fault_is_refused_by_name),
        cmocka_unit_test(bytes_that_differ_between_sources_are_refused),
        cmocka_unit_test(uneven_boxes_are_refused_and_no_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
