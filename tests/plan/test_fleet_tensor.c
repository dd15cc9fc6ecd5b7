/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include "fleet_case.h"

#define MAX_FAMILIES 64

/* ---- values ----------------------------------------------------------------------------------*/

/* A bf16 near one, told by where it stands; 0 for padding. */
static uint16_t value_of(uint64_t place)
{
    uint64_t mixed = place * 0x9E3779B97F4A7C15;
    return place == 0 ? 0 : (uint16_t)(0x3E00 | (mixed >> 48 & 0x81FF));
}

typedef struct outputs {
    uint8_t *data[WEIR_MAX_OUTPUTS];
    weir_shape shapes[WEIR_MAX_OUTPUTS];
    uint64_t n_bytes[WEIR_MAX_OUTPUTS];
} outputs;

static outputs convert(const weir_conversion *conversion, void *values, uint64_t rows,
                       uint64_t cols)
{
    weir_tensor source = { "box", WEIR_BF16, { 2, { rows, cols } }, values };
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    outputs out = { 0 };
    args.conversion = conversion;
    args.sources = &source;
    args.n_sources = 1;
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        assert_int_equal(weir_conversion_output_shape(conversion, o, &source.shape, &out.shapes[o]),
                         WEIR_OK);
        assert_int_equal(
            weir_tensor_bytes(conversion->outputs[o].dtype, &out.shapes[o], &out.n_bytes[o]),
            WEIR_OK);
        args.outputs[o] = out.data[o] = calloc(1, out.n_bytes[o] + 1);
    }
    if (weir_convert(&args) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return out;
}

static void outputs_free(outputs *out)
{
    for (size_t o = 0; o < WEIR_MAX_OUTPUTS; o++)
        free(out->data[o]);
}

/* ---- one worker's matrix ---------------------------------------------------------------------*/

/* Takes what rank the copy names: unconverted values of the box, piece by piece for a border. */
static uint16_t *gather(const weir_fleet *fleet, const weir_fleet_copy *copy)
{
    uint16_t *box = calloc((size_t)copy->n_rows * copy->n_cols, sizeof(*box));
    uint32_t n_pieces = copy->source == WEIR_FLEET_MIXED ? copy->n_pieces : 1;
    for (uint32_t i = 0; i < n_pieces; i++) {
        weir_fleet_piece p = { copy->rank,   copy->rank,       copy->row,
                               copy->n_rows, copy->col,        copy->n_cols,
                               copy->source, copy->source_row, copy->source_col };
        if (copy->source == WEIR_FLEET_MIXED)
            p = weir_fleet_piece_of(fleet, copy, i);
        for (uint32_t r = 0; r < p.n_rows; r++) {
            for (uint32_t k = 0; k < p.n_cols; k++)
                box[(size_t)(p.row - copy->row + r) * copy->n_cols + p.col - copy->col + k] =
                    value_of(
                        case_value(p.source, copy->expert, p.source_row + r, p.source_col + k));
        }
    }
    return box;
}

/* Puts the outputs of one box where they belong in those of the worker's matrix. */
static void place(const weir_conversion *conversion, const weir_fleet_copy *copy,
                  const outputs *box, const outputs *whole)
{
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        const weir_conversion_output *output = &conversion->outputs[o];
        size_t element = weir_dtype_bits(output->dtype) / 8;
        bool dropped = output->cell_cols == WEIR_WHOLE; /* one element per row */
        uint64_t cols = dropped ? 1 : box->shapes[o].dim[1];
        uint64_t pitch = dropped ? 1 : whole->shapes[o].dim[1];
        uint64_t col = dropped ? 0 : copy->col / output->cell_cols;
        uint64_t row = copy->row / output->cell_rows;
        for (uint64_t r = 0; r < box->shapes[o].dim[0]; r++)
            memcpy(whole->data[o] + ((row + r) * pitch + col) * element,
                   box->data[o] + r * cols * element, cols * element);
    }
}

/* Converts one matrix at once and copy by copy: equal bytes. Returns the copies that it had. */
static size_t check_matrix(const fleet_case *c, const weir_fleet *fleet, uint32_t worker,
                           const weir_fleet_tensor *t, const weir_fleet_copy *copies, size_t n)
{
    uint32_t tp = worker % c->replica.tp,
             d = worker / c->replica.tp / c->replica.pp % c->replica.dp;
    uint64_t rows, cols;
    size_t used = 0;
    uint64_t *places = case_expected(c, t, d, tp, copies->expert, &rows, &cols);
    uint16_t *values = calloc(rows * cols, sizeof(*values));
    weir_fleet_slice slice;
    assert_int_equal(weir_fleet_slice_of(fleet, worker, copies->tensor, &slice), WEIR_OK);
    for (uint64_t i = 0; i < rows * cols; i++)
        values[i] = value_of(places[i]);
    outputs whole = convert(t->conversion, values, slice.n_filled_rows, cols);
    outputs made = convert(t->conversion, values, slice.n_filled_rows, cols);
    for (size_t o = 0; o < t->conversion->n_outputs; o++)
        memset(made.data[o], 0xA5, made.n_bytes[o]);
    for (; used < n && copies[used].tensor == copies->tensor && copies[used].slot == copies->slot;
         used++) {
        uint16_t *box = gather(fleet, &copies[used]);
        outputs out = convert(t->conversion, box, copies[used].n_rows, copies[used].n_cols);
        place(t->conversion, &copies[used], &out, &made);
        outputs_free(&out);
        free(box);
    }
    for (size_t o = 0; o < t->conversion->n_outputs; o++) {
        if (memcmp(whole.data[o], made.data[o], whole.n_bytes[o]) != 0)
            fail_msg("%s: output %zu of worker %u differs", t->name, o, worker);
    }
    outputs_free(&whole);
    outputs_free(&made);
    free(values);
    free(places);
    return used;
}

/* ---- families --------------------------------------------------------------------------------*/

static void check_workers(const fleet_case *c, const weir_fleet *fleet,
                          const weir_fleet_tensor *tensors)
{
    for (uint32_t w = 0; w < weir_fleet_workers(fleet); w++) {
        size_t n = weir_fleet_copies(fleet, w, NULL, 0), used = 0;
        weir_fleet_copy *copies = calloc(n + 1, sizeof(*copies));
        weir_fleet_copies(fleet, w, copies, n);
        while (used < n)
            used +=
                check_matrix(c, fleet, w, &tensors[copies[used].tensor], copies + used, n - used);
        free(copies);
    }
}

/* Plans a mapping for one pair of meshes. False when the engine could not run it. */
static bool check_meshes(const weir_mapping *mapping, const char *trainer, const char *replica)
{
    fleet_case c;
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet_tensor *tensors;
    weir_fleet *fleet = NULL;
    size_t n_parameters;
    uint64_t expected = 0;
    weir_fleet_summary sum;
    memset(&c, 0, sizeof(c));
    assert_int_equal(weir_trainer_mesh_parse(trainer, &c.trainer), WEIR_OK);
    assert_int_equal(weir_replica_mesh_parse(replica, &c.replica), WEIR_OK);
    c.replica.vocabulary_pad = 64;
    args.trainer = &c.trainer;
    args.replica = &c.replica;
    if (weir_fleet_tensors_of(mapping, &tensors, &args.n_tensors) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    args.tensors = tensors;
    weir_status status = weir_fleet_open(&args, &fleet);
    if (status != WEIR_OK) {
        assert_true(status == WEIR_ERR_UNSUPPORTED || status == WEIR_ERR_LAYOUT);
        weir_fleet_tensors_free(tensors);
        return false;
    }
    check_workers(&c, fleet, tensors);
    /* What one worker alone holds is all there is: the bytes of the mapping's parameters. */
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &n_parameters);
    for (size_t i = 0; i < n_parameters; i++) {
        uint64_t n_bytes = 0;
        if (parameters[i].entry != SIZE_MAX)
            weir_tensor_bytes(parameters[i].dtype, &parameters[i].shape, &n_bytes);
        expected += n_bytes;
    }
    assert_int_equal(weir_fleet_summarise(fleet, &sum, NULL, NULL, NULL), WEIR_OK);
    if (weir_fleet_workers(fleet) == 1)
        assert_int_equal(sum.bytes, expected);
    weir_fleet_close(fleet);
    weir_fleet_tensors_free(tensors);
    return true;
}

static int check_family(const weir_family_info *family, weir_naming naming, const char *conversion)
{
    static const char *const meshes[][2] = { { "", "" },
                                             { "fsdp=3", "tp=2" },
                                             { "fsdp=2,ep=2", "dp=2,ep=2" },
                                             { "fsdp=5,tp=2,pp=2", "pp=2" } };
    weir_config *config;
    weir_mapping *mapping;
    weir_tensor *sources;
    size_t n_sources;
    char *text;
    int n_planned = 0;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    assert_int_equal(weir_family_preset(family->name, family->presets[0], &text), WEIR_OK);
    assert_int_equal(weir_config_parse(text, "preset", &config), WEIR_OK);
    if (weir_family_sources(family->name, config, naming, &sources, &n_sources) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    options.family = family->name;
    options.config = config;
    options.conversion = conversion;
    if (weir_mapping_open(&options, sources, n_sources, &mapping) != WEIR_OK)
        fail_msg("%s: %s", family->name, weir_last_error());
    for (size_t i = 0; i < 4; i++)
        n_planned += check_meshes(mapping, meshes[i][0], meshes[i][1]) ? 1 : 0;
    weir_mapping_close(mapping);
    weir_family_sources_free(sources);
    weir_config_close(config);
    weir_string_free(text);
    return n_planned;
}

static void check_families(const char *conversion)
{
    weir_family_info families[MAX_FAMILIES];
    size_t n = weir_families(families, MAX_FAMILIES);
    for (size_t i = 0; i < n; i++) {
        if (families[i].presets == NULL || families[i].presets[0] == NULL)
            continue;
        for (int naming = 0; naming < 3; naming++) {
            int n_planned = check_family(&families[i], (weir_naming)naming, conversion);
            /* Without tensor parallelism anything goes. */
            if (n_planned < 3)
                fail_msg("%s: %d plans with %s; %s", families[i].name, n_planned, conversion,
                         weir_last_error());
        }
    }
}

static void blocks_convert_copy_by_copy_as_they_do_at_once(void **state)
{
    (void)state;
    check_families("fp8_128x128");
}

static void rows_convert_copy_by_copy_as_they_do_at_once(void **state)
{
    (void)state;
    check_families("cutlass_fp8_e4m3_per_channel");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_convert_copy_by_copy_as_they_do_at_once),
        cmocka_unit_test(rows_convert_copy_by_copy_as_they_do_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
