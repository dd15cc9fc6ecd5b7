/* SPDX-License-Identifier: Apache-2.0 */
/* test_explicit.c - three trainer ranks whose boxes no mesh describes tell each other what they
 * hold, and an engine of two workers follows them, byte for byte. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "base/clock.h"
#include "refit/trainer.h"

#define N_RANKS 3
#define N_WORKERS 2
#define SHORT_MS 500

/* Experts of whole blocks for each of two workers, and odd numbers of everything else. */
static const char config[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\", "
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": false, "
    "\"decoder_sparse_step\": 1, \"norm_topk_prob\": true, \"rms_norm_eps\": 1e-06, "
    "\"rope_theta\": 1000000.0, \"tie_word_embeddings\": false, \"hidden_size\": 384, "
    "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"head_dim\": 128, \"intermediate_size\": 512, \"moe_intermediate_size\": 256, "
    "\"num_experts\": 8, \"num_experts_per_tok\": 2, \"mlp_only_layers\": [0], "
    "\"vocab_size\": 1000}";

/* ---- boxes -----------------------------------------------------------------------------------*/

typedef struct box_list {
    weir_box *boxes;
    size_t n;
} box_list;

static void add_box(box_list *list, const weir_box *box)
{
    for (uint32_t a = 0; a < box->rank; a++) {
        if (box->lo[a] >= box->hi[a])
            return;
    }
    list->boxes = realloc(list->boxes, (list->n + 1) * sizeof(*box));
    assert_non_null(list->boxes);
    list->boxes[list->n++] = *box;
}

static uint64_t at_most(uint64_t n, uint64_t most)
{
    return n < most ? n : most;
}

static void add_range(box_list *list, const weir_tensor *t, uint32_t axis, uint64_t lo, uint64_t hi)
{
    weir_box box = weir_box_whole(&t->shape);
    box.lo[axis] = at_most(lo, t->shape.dim[axis]);
    box.hi[axis] = at_most(hi, t->shape.dim[axis]);
    add_box(list, &box);
}

/* What a rank holds of a tensor. */
typedef void (*cut)(const weir_tensor *t, uint32_t rank, box_list *list);

static void odd_rows(const weir_tensor *t, uint32_t rank, box_list *list)
{
    static const uint64_t lines[] = { 0, 100, 317, UINT64_MAX };
    add_range(list, t, 0, lines[rank], lines[rank + 1]);
}

/* One rank holds nothing at all. */
static void columns(const weir_tensor *t, uint32_t rank, box_list *list)
{
    if (t->shape.rank < 2 && rank == 1)
        add_range(list, t, 0, 0, UINT64_MAX);
    else if (t->shape.rank >= 2 && rank < 2)
        add_range(list, t, t->shape.rank - 1, rank == 0 ? 0 : 150, rank == 0 ? 150 : UINT64_MAX);
}

/* Nine boxes, some of one rank side by side and one above the other. */
static void grid(const weir_tensor *t, uint32_t rank, box_list *list)
{
    static const uint64_t rows[] = { 0, 70, 200, UINT64_MAX }, cols[] = { 0, 130, 260, UINT64_MAX };
    static const uint32_t owners[3][3] = { { 0, 0, 1 }, { 2, 0, 1 }, { 2, 1, 0 } };
    if (t->shape.rank < 2) {
        odd_rows(t, rank, list);
        return;
    }
    for (size_t i = 0; i < 9; i++) {
        weir_box box = weir_box_whole(&t->shape);
        uint32_t last = t->shape.rank - 1;
        box.lo[last - 1] = at_most(rows[i / 3], t->shape.dim[last - 1]);
        box.hi[last - 1] = at_most(rows[i / 3 + 1], t->shape.dim[last - 1]);
        box.lo[last] = at_most(cols[i % 3], t->shape.dim[last]);
        box.hi[last] = at_most(cols[i % 3 + 1], t->shape.dim[last]);
        if (owners[i / 3][i % 3] == rank)
            add_box(list, &box);
    }
}

/* Stacked experts by their ids, every third one, and expert 4 on two ranks; all else whole on two
 * ranks. */
static void expert_ids(const weir_tensor *t, uint32_t rank, box_list *list)
{
    if (t->shape.rank == 3 && t->shape.dim[0] == 8) {
        for (uint64_t x = 0; x < 8; x++) {
            if (x % N_RANKS == rank || (x == 4 && rank == 0))
                add_range(list, t, 0, x, x + 1);
        }
    } else if (rank > 0) {
        add_range(list, t, 0, 0, UINT64_MAX);
    }
}

/* ---- ranks and workers -----------------------------------------------------------------------*/

typedef struct explicit_rank {
    weir_trainer *trainer;
    weir_tensor_shard *shards;
    size_t n_shards;
    bool is_absent; /* takes no part in what all do */
    uint64_t version;
    weir_status status;
    char line[WEIR_ERROR_TEXT];
} explicit_rank;

typedef struct explicit_case {
    rig r; /* the model, its config and the directory */
    unsigned timeout_ms;
    explicit_rank ranks[N_RANKS];
    weir_replica *workers[N_WORKERS];
} explicit_case;

static void write_config(rig *r)
{
    snprintf(r->config_path, sizeof(r->config_path), "/tmp/weir-explicit-XXXXXX");
    int fd = mkstemp(r->config_path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, config, strlen(config)), (ssize_t)strlen(config));
    close(fd);
    assert_ok(weir_config_open(r->config_path, &r->config));
    snprintf(r->share, sizeof(r->share), "/tmp/weir-share-XXXXXX");
    assert_non_null(mkdtemp(r->share));
}

static void open_model(rig *r, weir_naming naming, weir_dtype dtype)
{
    assert_ok(weir_family_sources(r->family, r->config, naming, &r->model.tensors, &r->model.n));
    for (size_t t = 0; t < r->model.n; t++) {
        uint64_t n_bytes;
        weir_tensor *tensor = &r->model.tensors[t];
        tensor->dtype = dtype;
        assert_ok(weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes));
        tensor->data = malloc(n_bytes);
        assert_non_null(tensor->data);
    }
}

static void open_rank(explicit_case *c, uint32_t rank)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.directory = weir_directory_address(c->r.directory);
    options.model = "model";
    options.rank = rank;
    options.n_ranks = N_RANKS;
    options.family = c->r.family;
    options.conversion = c->r.conversion;
    options.config = c->r.config_path;
    options.transport = c->r.transport;
    options.transport_directory = c->r.share;
    options.n_threads = 1;
    options.timeout_ms = c->timeout_ms;
    options.mesh = WEIR_MESH_EXPLICIT;
    options.replica_mesh = "tp=2";
    assert_ok(weir_trainer_open(&options, &c->ranks[rank].trainer));
}

static weir_replica_options worker_options(const explicit_case *c, uint32_t worker, char name[32])
{
    snprintf(name, 32, "engine-%u", worker);
    weir_replica_options options = rig_replica_options(&c->r, name, WEIR_INSTALL_STAGED);
    options.mesh = "tp=2";
    options.worker = worker;
    return options;
}

static explicit_case *open_case(weir_naming naming, weir_dtype dtype, const char *conversion)
{
    explicit_case *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    c->r.family = "qwen3_moe";
    c->r.conversion = conversion;
    c->r.transport = "ucx";
    c->timeout_ms = 3 * RIG_TIMEOUT_MS;
    write_config(&c->r);
    open_model(&c->r, naming, dtype);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_ok(weir_directory_open(&options, &c->r.directory));
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        open_rank(c, rank);
    return c;
}

static void drop_shards(explicit_rank *rank)
{
    for (size_t i = 0; i < rank->n_shards; i++)
        free(rank->shards[i].local.data);
    free(rank->shards);
    rank->shards = NULL;
    rank->n_shards = 0;
}

static void close_case(explicit_case *c)
{
    char command[128];
    for (uint32_t w = 0; w < N_WORKERS; w++)
        weir_replica_close(c->workers[w]);
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        weir_trainer_close(c->ranks[rank].trainer);
        drop_shards(&c->ranks[rank]);
    }
    weir_directory_close(c->r.directory);
    for (size_t t = 0; t < c->r.model.n; t++)
        free(c->r.model.tensors[t].data);
    weir_family_sources_free(c->r.model.tensors);
    weir_config_close(c->r.config);
    unlink(c->r.config_path);
    snprintf(command, sizeof(command), "rm -rf %s", c->r.share);
    assert_int_equal(system(command), 0);
    free(c);
}

/* ---- shards ----------------------------------------------------------------------------------*/

static void add_shard(explicit_rank *rank, const weir_tensor *t, const weir_box *box)
{
    rank->shards = realloc(rank->shards, (rank->n_shards + 1) * sizeof(*rank->shards));
    assert_non_null(rank->shards);
    weir_tensor_shard *shard = &rank->shards[rank->n_shards++];
    uint64_t n_bytes;
    *shard =
        (weir_tensor_shard){ { t->name, t->dtype, weir_box_shape(box), NULL }, t->shape, *box };
    assert_ok(weir_tensor_bytes(t->dtype, &shard->local.shape, &n_bytes));
    shard->local.data = malloc(n_bytes);
    assert_non_null(shard->local.data);
}

/* New memory for what the ranks hold by `how`. */
static void shard_model(explicit_case *c, cut how)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        drop_shards(&c->ranks[rank]);
        for (size_t t = 0; t < c->r.model.n; t++) {
            box_list list = { NULL, 0 };
            how(&c->r.model.tensors[t], rank, &list);
            for (size_t i = 0; i < list.n; i++)
                add_shard(&c->ranks[rank], &c->r.model.tensors[t], &list.boxes[i]);
            free(list.boxes);
        }
    }
}

static const weir_tensor *find_tensor(const explicit_case *c, const char *name)
{
    for (size_t t = 0; t < c->r.model.n; t++) {
        if (strcmp(c->r.model.tensors[t].name, name) == 0)
            return &c->r.model.tensors[t];
    }
    fail_msg("the model has no %s", name);
    return NULL;
}

static weir_tensor_shard *find_shard(explicit_case *c, uint32_t rank, const char *name)
{
    for (size_t i = 0; i < c->ranks[rank].n_shards; i++) {
        if (strcmp(c->ranks[rank].shards[i].local.name, name) == 0)
            return &c->ranks[rank].shards[i];
    }
    fail_msg("rank %u has no %s", rank, name);
    return NULL;
}

/* The box's bytes of the whole tensor, row by row of its last axis. */
static void copy_box(const weir_tensor *whole, const weir_tensor_shard *shard)
{
    size_t element = weir_dtype_bits(whole->dtype) / 8;
    uint32_t last = whole->shape.rank - 1;
    const weir_box *box = &shard->box;
    size_t row_bytes = (box->hi[last] - box->lo[last]) * element;
    uint64_t at[WEIR_MAX_RANK], n_elements;
    unsigned char *to = shard->local.data;
    memcpy(at, box->lo, sizeof(at));
    assert_ok(weir_shape_elements(&shard->local.shape, &n_elements));
    for (uint64_t n = n_elements * element / row_bytes; n > 0; n--, to += row_bytes) {
        uint64_t offset = 0;
        for (uint32_t a = 0; a <= last; a++)
            offset = offset * whole->shape.dim[a] + at[a];
        memcpy(to, (const unsigned char *)whole->data + offset * element, row_bytes);
        for (uint32_t a = last; a-- > 0;) {
            if (++at[a] < box->hi[a])
                break;
            at[a] = box->lo[a];
        }
    }
}

static void fill_shards(explicit_case *c, unsigned version)
{
    rig_fill(&c->r.model, version);
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        for (size_t i = 0; i < c->ranks[rank].n_shards; i++)
            copy_box(find_tensor(c, c->ranks[rank].shards[i].local.name),
                     &c->ranks[rank].shards[i]);
    }
}

/* ---- what all ranks do at once ---------------------------------------------------------------*/

static void *register_rank(void *context)
{
    explicit_rank *rank = context;
    rank->status = weir_trainer_register_shards(rank->trainer, rank->shards, rank->n_shards);
    snprintf(rank->line, sizeof(rank->line), "%s", weir_last_error());
    return NULL;
}

static void *publish_rank(void *context)
{
    explicit_rank *rank = context;
    rank->status = weir_trainer_publish(rank->trainer, rank->version, NULL);
    snprintf(rank->line, sizeof(rank->line), "%s", weir_last_error());
    return NULL;
}

static void all_at_once(explicit_case *c, void *(*what)(void *))
{
    pthread_t threads[N_RANKS];
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        if (!c->ranks[rank].is_absent)
            assert_int_equal(pthread_create(&threads[rank], NULL, what, &c->ranks[rank]), 0);
    }
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        if (!c->ranks[rank].is_absent)
            pthread_join(threads[rank], NULL);
    }
}

static void expect_all_well(explicit_case *c)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        if (!c->ranks[rank].is_absent && c->ranks[rank].status != WEIR_OK)
            fail_msg("rank %u: %s", rank, c->ranks[rank].line);
    }
}

static void expect_all_refuse(explicit_case *c, weir_status status, const char *line)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        const explicit_rank *r = &c->ranks[rank];
        if (!r->is_absent && (r->status != status || strstr(r->line, line) == NULL))
            fail_msg("rank %u: got %s: '%s', wanted '%s'", rank, weir_status_name(r->status),
                     r->line, line);
    }
}

static void publish(explicit_case *c, uint64_t version)
{
    fill_shards(c, (unsigned)version);
    all_at_once(c, register_rank);
    expect_all_well(c);
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        c->ranks[rank].version = version;
    all_at_once(c, publish_rank);
    expect_all_well(c);
}

static void expect_verified(const explicit_case *c, uint32_t worker, uint64_t version)
{
    char name[32];
    weir_verify_options options = WEIR_VERIFY_OPTIONS_INIT;
    weir_verify_report report;
    snprintf(name, sizeof(name), "engine-%u", worker);
    options.directory = weir_directory_address(c->r.directory);
    options.model = "model";
    options.replica = name;
    options.family = c->r.family;
    options.conversion = c->r.conversion;
    options.config = c->r.config_path;
    options.sources = c->r.model.tensors;
    options.n_sources = c->r.model.n;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.mesh = "tp=2";
    options.worker = worker;
    assert_ok(weir_verify(&options, &report));
    if (report.n_different != 0)
        fail_msg("worker %u: %s", worker, report.first_difference);
    assert_int_equal(report.version, version);
}

static void refit(explicit_case *c, uint64_t version)
{
    publish(c, version);
    for (uint32_t w = 0; w < N_WORKERS; w++) {
        char name[32];
        weir_replica_options options = worker_options(c, w, name);
        if (c->workers[w] == NULL) {
            assert_ok(weir_replica_open(&options, &c->workers[w]));
            assert_ok(weir_replica_allocate(c->workers[w]));
        }
        assert_ok(weir_replica_install(c->workers[w], version, NULL));
        expect_verified(c, w, version);
    }
}

static void follow(weir_naming naming, weir_dtype dtype, const char *conversion, cut how)
{
    explicit_case *c = open_case(naming, dtype, conversion);
    shard_model(c, how);
    refit(c, 1);
    refit(c, 2);
    close_case(c);
}

/* ---- bytes -----------------------------------------------------------------------------------*/

static void test_rows_at_odd_lines(void **state)
{
    (void)state;
    follow(WEIR_NAMING_HF, WEIR_BF16, "fp8_128x128", odd_rows);
    follow(WEIR_NAMING_HF, WEIR_BF16, "bf16_cast", odd_rows);
}

static void test_columns_and_a_rank_with_nothing(void **state)
{
    (void)state;
    follow(WEIR_NAMING_HF, WEIR_BF16, "fp8_128x128", columns);
    follow(WEIR_NAMING_STACKED, WEIR_BF16, "bf16_cast", columns);
}

static void test_a_grid_of_boxes_several_of_one_rank(void **state)
{
    (void)state;
    follow(WEIR_NAMING_HF, WEIR_BF16, "fp8_128x128", grid);
    follow(WEIR_NAMING_STACKED, WEIR_BF16, "bf16_cast", grid);
}

static void test_stacked_experts_by_their_ids_and_boxes_on_two_ranks(void **state)
{
    (void)state;
    follow(WEIR_NAMING_STACKED, WEIR_BF16, "fp8_128x128", expert_ids);
}

static void test_fp32_masters(void **state)
{
    (void)state;
    follow(WEIR_NAMING_HF, WEIR_F32, "fp8_128x128", odd_rows);
}

/* ---- who is missing --------------------------------------------------------------------------*/

static explicit_case *open_small(cut how, unsigned timeout_ms)
{
    explicit_case *c = open_case(WEIR_NAMING_HF, WEIR_BF16, "bf16_cast");
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        c->ranks[rank].trainer->worker.timeout_ms = timeout_ms;
    shard_model(c, how);
    return c;
}

static void test_a_rank_that_never_comes_is_named(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, SHORT_MS);
    c->ranks[2].is_absent = true;
    double started_s = weir_now_s();
    all_at_once(c, register_rank);
    assert_true(weir_now_s() - started_s < 5 * SHORT_MS / 1e3);
    expect_all_refuse(c, WEIR_ERR_TIMED_OUT,
                      "waited 0.5 s for what ranks hold from rank 2: it has not announced itself");
    close_case(c);
}

static void test_a_rank_that_dies_while_others_wait_is_waited_for(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, SHORT_MS);
    c->ranks[0].is_absent = c->ranks[2].is_absent = true;
    all_at_once(c, register_rank);
    expect_all_refuse(c, WEIR_ERR_TIMED_OUT, "from rank 0");
    weir_trainer_close(c->ranks[1].trainer);
    c->ranks[1].trainer = NULL;
    open_rank(c, 1);
    c->ranks[0].is_absent = c->ranks[2].is_absent = false;
    refit(c, 1);
    close_case(c);
}

static void test_a_rank_that_is_started_anew_joins_alone(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, 3 * RIG_TIMEOUT_MS);
    refit(c, 1);
    weir_trainer_close(c->ranks[1].trainer);
    c->ranks[1].trainer = NULL;
    open_rank(c, 1);
    register_rank(&c->ranks[1]);
    if (c->ranks[1].status != WEIR_OK)
        fail_msg("%s", c->ranks[1].line);
    refit(c, 2);
    close_case(c);
}

/* ---- reasons ---------------------------------------------------------------------------------*/

#define Q_PROJ "model.layers.0.self_attn.q_proj.weight"

static void refuse(explicit_case *c, weir_status status, const char *line)
{
    all_at_once(c, register_rank);
    expect_all_refuse(c, status, line);
}

static void test_a_gap_is_named_on_every_rank(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, RIG_TIMEOUT_MS);
    weir_tensor_shard *shard = find_shard(c, 1, Q_PROJ);
    shard->box.lo[0] += 20;
    shard->local.shape.dim[0] -= 20;
    refuse(c, WEIR_ERR_LAYOUT,
           Q_PROJ ": coverage gap at axis 0 [100, 120): no rank holds it; held by rank 0 axis 0 "
                  "[0, 100), rank 1 axis 0 [120, 317), rank 2 axis 0 [317, 512)");
    shard->box.lo[0] -= 20;
    shard->local.shape.dim[0] += 20;
    refit(c, 1); /* and may be mended */
    close_case(c);
}

static void test_what_nobody_holds_is_named_on_every_rank(void **state)
{
    (void)state;
    explicit_case *c = open_small(columns, RIG_TIMEOUT_MS);
    weir_tensor_shard *norm = find_shard(c, 1, "model.norm.weight");
    free(norm->local.data);
    *norm = c->ranks[1].shards[--c->ranks[1].n_shards];
    refuse(c, WEIR_ERR_LAYOUT, "model.norm.weight: coverage gap: no rank holds any of it");
    close_case(c);
}

static void test_overlaps_are_named_on_every_rank(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, RIG_TIMEOUT_MS);
    weir_tensor_shard *shard = find_shard(c, 1, Q_PROJ);
    shard->box.lo[0]--;
    shard->box.hi[0]--;
    refuse(c, WEIR_ERR_LAYOUT,
           Q_PROJ ": rank 0 holds axis 0 [0, 100), which overlaps axis 0 [99, 316) of rank 1");
    close_case(c);
}

static void test_ranks_that_disagree_are_both_named(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, RIG_TIMEOUT_MS);
    weir_tensor_shard *shard = find_shard(c, 2, Q_PROJ);
    weir_tensor_shard good = *shard;
    shard->global_shape.dim[0]++;
    refuse(c, WEIR_ERR_LAYOUT,
           Q_PROJ ": shape disagreement [512, 384] vs [513, 384]: rank 1 (worker "
                  "trainer-1-");
    *shard = good;
    shard->local.dtype = WEIR_F16;
    refuse(c, WEIR_ERR_LAYOUT, Q_PROJ ": dtype disagreement bfloat16 vs float16: rank 1 (worker ");
    *shard = good;
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        find_shard(c, rank, Q_PROJ)->global_shape.dim[0] += 10;
    refuse(c, WEIR_ERR_LAYOUT, Q_PROJ);
    for (uint32_t rank = 0; rank < N_RANKS; rank++)
        find_shard(c, rank, Q_PROJ)->local.name = "lost.weight";
    refuse(c, WEIR_ERR_LAYOUT, "lost.weight");
    close_case(c);
}

static void test_a_box_that_is_none_is_refused_before_anyone_is_told(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, RIG_TIMEOUT_MS);
    explicit_rank *rank = &c->ranks[0];
    weir_tensor_shard *shard = find_shard(c, 0, Q_PROJ), good = *shard;
    shard->local.shape.dim[0]--;
    register_rank(rank);
    assert_int_equal(rank->status, WEIR_ERR_INVALID);
    *shard = good;
    shard->box.hi[0] = 4000;
    shard->local.shape.dim[0] = 4000;
    register_rank(rank);
    assert_int_equal(rank->status, WEIR_ERR_INVALID);
    *shard = good;
    shard->local.name = NULL;
    register_rank(rank);
    assert_int_equal(rank->status, WEIR_ERR_INVALID);
    *shard = good;
    refit(c, 1);
    close_case(c);
}

/* ---- the same layout, and others -------------------------------------------------------------*/

static void test_the_same_layout_again_asks_nobody(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, 3 * RIG_TIMEOUT_MS);
    refit(c, 1);
    weir_counters before = c->ranks[0].trainer->worker.counters;
    explicit_rank alone = c->ranks[0];
    weir_trainer_close(c->ranks[2].trainer);
    c->ranks[2].trainer = NULL;
    for (size_t i = 0; i < alone.n_shards; i++) { /* elsewhere in memory */
        free(c->ranks[0].shards[i].local.data);
        uint64_t n_bytes;
        assert_ok(weir_tensor_bytes(WEIR_BF16, &alone.shards[i].local.shape, &n_bytes));
        c->ranks[0].shards[i].local.data = malloc(n_bytes + 64);
    }
    register_rank(&c->ranks[0]);
    assert_int_equal(c->ranks[0].status, WEIR_OK);
    weir_counters after = c->ranks[0].trainer->worker.counters;
    assert_int_equal(after.plans, before.plans);
    assert_int_equal(after.registrations, before.registrations);
    open_rank(c, 2);
    refit(c, 2);
    close_case(c);
}

static void test_the_same_boxes_in_another_order_keep_the_plan(void **state)
{
    (void)state;
    explicit_case *c = open_small(grid, 3 * RIG_TIMEOUT_MS);
    refit(c, 1);
    for (uint32_t k = 0; k < N_RANKS; k++) {
        explicit_rank *rank = &c->ranks[k];
        for (size_t i = 0, end = rank->n_shards; i + 1 < end; i++) {
            weir_tensor_shard held = rank->shards[i];
            rank->shards[i] = rank->shards[--end];
            rank->shards[end] = held;
        }
    }
    refit(c, 2);
    for (uint32_t k = 0; k < N_RANKS; k++)
        assert_int_equal(c->ranks[k].trainer->worker.counters.plans, 1);
    shard_model(c, columns);
    refit(c, 3);
    for (uint32_t k = 0; k < N_RANKS; k++)
        assert_int_equal(c->ranks[k].trainer->worker.counters.plans, 2);
    close_case(c);
}

static void test_all_ranks_change_their_layout_together(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, 3 * RIG_TIMEOUT_MS);
    refit(c, 1);
    shard_model(c, columns);
    refit(c, 2);
    shard_model(c, grid);
    refit(c, 3);
    close_case(c);
}

static void test_a_layout_that_one_rank_changes_alone_is_refused(void **state)
{
    (void)state;
    explicit_case *c = open_small(expert_ids, SHORT_MS);
    refit(c, 1);
    weir_tensor_shard *shard = find_shard(c, 1, Q_PROJ),
                      good = *shard; /* rank 2 has all of it too */
    shard->box.hi[0] = shard->local.shape.dim[0] = 256;
    register_rank(&c->ranks[1]);
    assert_int_equal(c->ranks[1].status, WEIR_ERR_TIMED_OUT);
    assert_non_null(strstr(c->ranks[1].line, "from rank 0: it goes by other layouts"));
    c->ranks[1].version = 2;
    publish_rank(&c->ranks[1]);
    assert_int_equal(c->ranks[1].status, WEIR_ERR_INVALID);
    *find_shard(c, 1, Q_PROJ) = good;
    refit(c, 2);
    close_case(c);
}

static void test_replicas_refuse_parts_of_two_plans(void **state)
{
    (void)state;
    explicit_case *c = open_small(odd_rows, 3 * RIG_TIMEOUT_MS);
    refit(c, 1);
    c->ranks[2].trainer->source.signature[0] ^= 1;
    publish(c, 2);
    assert_error(weir_replica_install(c->workers[0], 2, NULL), WEIR_ERR_LAYOUT,
                 "has made version 2 by plan ");
    assert_int_equal(weir_replica_version(c->workers[0]), 1);
    close_case(c);
}

/* ---- options ---------------------------------------------------------------------------------*/

static void test_options_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    weir_trainer *trainer;
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    options.model = "model";
    options.mesh = WEIR_MESH_EXPLICIT;
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_INVALID, "give n_ranks");
    options.n_ranks = 2;
    options.expert_owners = "[0,1]";
    assert_error(weir_trainer_open(&options, &trainer), WEIR_ERR_INVALID, "expert_owners");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_at_odd_lines),
        cmocka_unit_test(test_columns_and_a_rank_with_nothing),
        cmocka_unit_test(test_a_grid_of_boxes_several_of_one_rank),
        cmocka_unit_test(test_stacked_experts_by_their_ids_and_boxes_on_two_ranks),
        cmocka_unit_test(test_fp32_masters),
        cmocka_unit_test(test_a_rank_that_never_comes_is_named),
        cmocka_unit_test(test_a_rank_that_dies_while_others_wait_is_waited_for),
        cmocka_unit_test(test_a_rank_that_is_started_anew_joins_alone),
        cmocka_unit_test(test_a_gap_is_named_on_every_rank),
        cmocka_unit_test(test_what_nobody_holds_is_named_on_every_rank),
        cmocka_unit_test(test_overlaps_are_named_on_every_rank),
        cmocka_unit_test(test_ranks_that_disagree_are_both_named),
        cmocka_unit_test(test_a_box_that_is_none_is_refused_before_anyone_is_told),
        cmocka_unit_test(test_the_same_layout_again_asks_nobody),
        cmocka_unit_test(test_the_same_boxes_in_another_order_keep_the_plan),
        cmocka_unit_test(test_all_ranks_change_their_layout_together),
        cmocka_unit_test(test_a_layout_that_one_rank_changes_alone_is_refused),
        cmocka_unit_test(test_replicas_refuse_parts_of_two_plans),
        cmocka_unit_test(test_options_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
