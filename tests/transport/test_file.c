/* SPDX-License-Identifier: Apache-2.0 */
/* test_file.c - what is transport file's alone: the files it writes, and what a reader makes of
 * files that somebody else put there. */
#include "transport/conformance_bench.h"

#include <fcntl.h>
#include <jansson.h>

#include "weir/checkpoint.h"

static const setting shared = { "file", "file", "", false, NULL, 0 };

#define MODEL "conformance%2Fmodel"

static void path_of(const bench *b, const char *name, char out[256])
{
    snprintf(out, 256, "%s/%s/%s", b->directory, MODEL, name);
}

static void sealed_tensors_are_a_safetensors_file(void **state)
{
    bench *b = bench_of(state);
    owner_must(b, OWNER_ALLOCATE, 0, 1001, 0, "");
    seal(b, 1, "v1");
    char path[256];
    path_of(b, "v1.safetensors", path);
    weir_checkpoint *checkpoint = NULL;
    assert_ok(weir_checkpoint_open(path, &checkpoint));
    const weir_tensor *first = weir_checkpoint_find(checkpoint, "first");
    const weir_tensor *second = weir_checkpoint_find(checkpoint, "second");
    assert_true(first != NULL && second != NULL);
    assert_int_equal(first->shape.dim[0], 500);
    assert_int_equal(second->shape.dim[0], 501);
    assert_int_equal(owner_compare(first->data, 0, 500, 1), 500);
    assert_int_equal(owner_compare(second->data, 500, 501, 1), 501);
    assert_string_equal(weir_checkpoint_metadata(checkpoint, "weir.model"), "conformance/model");
    assert_string_equal(weir_checkpoint_metadata(checkpoint, "weir.label"), "v1");
    assert_string_equal(weir_checkpoint_metadata(checkpoint, "weir.box:second"), "10:511");
    assert_null(weir_checkpoint_metadata(checkpoint, "weir.box:first"));
    weir_checkpoint_close(checkpoint);
}

static void the_manifest_says_what_is_where(void **state)
{
    bench *b = bench_of(state);
    owner_must(b, OWNER_ALLOCATE, 0, 1001, 0, "");
    seal(b, 1, "v1");
    char path[256];
    path_of(b, "v1.manifest.json", path);
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    const char *format, *label, *name, *dtype, *digest;
    json_int_t n_bytes, shape, low, high, offset;
    json_t *tensors;
    assert_int_equal(json_unpack(root, "{s:s, s:s, s:I, s:o}", "format", &format, "label", &label,
                                 "n_bytes", &n_bytes, "tensors", &tensors),
                     0);
    assert_string_equal(format, "weir-file-1");
    assert_string_equal(label, "v1");
    assert_int_equal(n_bytes, 1001);
    assert_int_equal(json_array_size(tensors), 2);
    assert_int_equal(json_unpack(json_array_get(tensors, 1),
                                 "{s:s, s:s, s:[I], s:{s:[I], s:[I]}, s:I, s:s}", "name", &name,
                                 "dtype", &dtype, "global_shape", &shape, "box", "lo", &low, "hi",
                                 &high, "region_offset", &offset, "digest", &digest),
                     0);
    assert_string_equal(name, "second");
    assert_string_equal(dtype, "U8");
    assert_true(shape == 521 && low == 10 && high == 511 && offset == 500);
    assert_int_equal(strlen(digest), 32);
    json_decref(root);
}

/* Reads with a key whose files were tampered with. */
static weir_status import_again(bench *b)
{
    b->ops->forget(b->remote);
    b->remote = NULL;
    return b->ops->import(b->peer, b->key, b->key_bytes, &b->remote);
}

static void without_its_marker_a_seal_does_not_count(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 1000, 2);
    char path[256];
    path_of(b, "v1.ready", path);
    FILE *marker = fopen(path, "w");
    fputs("weir-file 1 00000000000000000000000000000000\n", marker);
    fclose(marker);
    assert_int_equal(import_again(b), WEIR_ERR_NOT_FOUND);
    assert_non_null(strstr(weir_last_error(), "its marker is of another seal"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(import_again(b), WEIR_ERR_NOT_FOUND);
    assert_non_null(strstr(weir_last_error(), "no marker"));
}

static void a_file_of_another_length_is_refused(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 1000, 3);
    char path[256];
    path_of(b, "v1.safetensors", path);
    assert_int_equal(truncate(path, 700), 0);
    assert_int_equal(import_again(b), WEIR_ERR_CORRUPT);
    assert_non_null(strstr(weir_last_error(), "file has 700 bytes"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(import_again(b), WEIR_ERR_NOT_FOUND);
}

static void a_file_that_is_cut_while_it_is_read_is_noticed(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 16 * MIB, 4);
    weir_copy copy = { b->remote, 0, b->data, 16 * MIB };
    weir_transfer *transfer;
    assert_ok(b->ops->post(b->peer, &copy, 1, &transfer));
    assert_int_equal(b->ops->test(transfer, NULL), WEIR_IN_PROGRESS);
    char path[256];
    path_of(b, "v1.safetensors", path);
    assert_int_equal(truncate(path, 8 * (off_t)MIB), 0);
    assert_int_equal(weir_transfer_wait(transfer, WAIT_MS), WEIR_ERR_CORRUPT);
    assert_string_equal(weir_last_error(), "owner 0: " MODEL "/v1 ends early");
    assert_int_equal(b->ops->test(transfer, NULL), WEIR_ERR_CORRUPT); /* and stays so */
    b->ops->finish(transfer);
}

static void links_are_not_followed(void **state)
{
    bench *b = bench_of(state);
    share(b, OWNER_ALLOCATE, 1000, 5);
    static const char *const names[] = { "v1.safetensors", "v1.ready" };
    for (size_t i = 0; i < 2; i++) {
        char path[256], moved[256];
        path_of(b, names[i], path);
        path_of(b, "moved", moved);
        assert_int_equal(rename(path, moved), 0);
        assert_int_equal(symlink("moved", path), 0);
        assert_int_equal(import_again(b), WEIR_ERR_IO);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(rename(moved, path), 0);
    }
    char model[128], moved[128];
    snprintf(model, sizeof(model), "%s/%s", b->directory, MODEL);
    snprintf(moved, sizeof(moved), "%s/moved", b->directory);
    assert_int_equal(rename(model, moved), 0);
    assert_int_equal(symlink("moved", model), 0);
    assert_int_equal(import_again(b), WEIR_ERR_IO);
    assert_int_equal(unlink(model), 0);
    assert_int_equal(rename(moved, model), 0);
    assert_ok(import_again(b));
}

/* ---- sealing in this process -----------------------------------------------------------------*/

static weir_status seal_shards(bench *b, weir_region *region, const weir_shard *shards, size_t n,
                               const char *model, const char *label)
{
    weir_seal what = WEIR_SEAL_INIT;
    what.model = model;
    what.label = label;
    what.shards = shards;
    what.n_shards = n;
    what.region = 7;
    return b->ops->seal(region, &what);
}

static weir_shard shard_of(const char *name, uint64_t offset, uint64_t n_bytes)
{
    return (weir_shard){ .name = name,
                         .dtype = WEIR_U8,
                         .global_shape = { 1, { n_bytes } },
                         .box = { 1, { 0 }, { n_bytes } },
                         .region = 7,
                         .offset = offset,
                         .n_bytes = n_bytes };
}

static void gaps_between_tensors_cannot_be_read(void **state)
{
    bench *b = bench_of(state);
    weir_region *region;
    assert_ok(b->ops->allocate(b->transport, 100, &region));
    owner_fill(b->ops->region_data(region), 100, 6);
    weir_shard shards[3] = { shard_of("late", 60, 40), shard_of("early", 10, 20),
                             shard_of("elsewhere", 0, 5) };
    shards[2].region = 8;
    assert_ok(seal_shards(b, region, shards, 3, "m", "l"));
    const void *key;
    size_t key_bytes;
    assert_ok(b->ops->region_key(region, &key, &key_bytes));
    connect_owner(b);
    assert_ok(b->ops->import(b->peer, key, key_bytes, &b->remote));
    assert_reads(b, 10, 20, 6);
    assert_reads(b, 60, 40, 6);
    const uint64_t gaps[][2] = { { 0, 1 }, { 9, 2 }, { 29, 2 }, { 59, 2 }, { 0, 100 } };
    for (size_t i = 0; i < sizeof(gaps) / sizeof(gaps[0]); i++) {
        weir_copy copy = { b->remote, gaps[i][0], b->data, gaps[i][1] };
        assert_int_equal(read_copies(b, &copy, 1, WAIT_MS), WEIR_ERR_INVALID);
        assert_non_null(strstr(weir_last_error(), "which no tensor that was sealed holds"));
    }
    b->ops->release(region);
}

static void shards_that_do_not_fit_are_refused(void **state)
{
    bench *b = bench_of(state);
    weir_region *region;
    const void *key;
    size_t key_bytes;
    assert_ok(b->ops->allocate(b->transport, 100, &region));
    weir_shard wrong[2] = { shard_of("a", 0, 60), shard_of("b", 50, 50) };
    assert_int_equal(seal_shards(b, region, wrong, 2, "m", "l"), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "b: its bytes overlap those of another tensor");
    wrong[1].offset = 60;
    assert_int_equal(seal_shards(b, region, wrong, 2, "m", "l"), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "leave a region of 100"));
    wrong[1] = shard_of("b", 60, 40);
    wrong[1].n_bytes = 39;
    assert_int_equal(seal_shards(b, region, wrong, 2, "m", "l"), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "its box has 40 bytes, its shard 39"));
    assert_int_equal(b->ops->region_key(region, &key, &key_bytes), WEIR_ERR_INVALID);
    char path[256];
    snprintf(path, sizeof(path), "%s/m/l.safetensors", b->directory);
    assert_int_not_equal(access(path, F_OK), 0);
    b->ops->release(region);
}

/* Parts of one parameter for two workers, and a second box of it for one of them. */
static void shards_of_one_name_are_tensors_of_their_own(void **state)
{
    bench *b = bench_of(state);
    weir_region *region;
    assert_ok(b->ops->allocate(b->transport, 30, &region));
    unsigned char *bytes = b->ops->region_data(region);
    for (unsigned char i = 0; i < 30; i++)
        bytes[i] = i;
    weir_shard shards[3] = { shard_of("t", 20, 10), shard_of("t", 0, 10), shard_of("t", 10, 10) };
    shards[0].place = (weir_mesh_place){ 0, 0, 1 };
    shards[2].global_shape.dim[0] = 20; /* the only one that is a part */
    assert_ok(seal_shards(b, region, shards, 3, "m", "l"));
    char path[256];
    snprintf(path, sizeof(path), "%s/m/l.safetensors", b->directory);
    weir_checkpoint *checkpoint = NULL;
    assert_ok(weir_checkpoint_open(path, &checkpoint));
    static const char *const names[] = { "t", "t#2", "t#3" };
    for (size_t i = 0; i < 3; i++) {
        const weir_tensor *tensor = weir_checkpoint_find(checkpoint, names[i]);
        assert_non_null(tensor);
        assert_memory_equal(tensor->data, bytes + 10 * i, 10);
    }
    assert_string_equal(weir_checkpoint_metadata(checkpoint, "weir.box:t#2"), "0:10");
    assert_null(weir_checkpoint_metadata(checkpoint, "weir.box:t"));
    weir_checkpoint_close(checkpoint);
    snprintf(path, sizeof(path), "%s/m/l.manifest.json", b->directory);
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
    const char *name, *file_name;
    int stage, d, t;
    assert_int_equal(json_unpack(json_array_get(json_object_get(root, "tensors"), 2),
                                 "{s:s, s:s, s:[i, i, i]}", "name", &name, "file_name", &file_name,
                                 "place", &stage, &d, &t),
                     0);
    assert_string_equal(name, "t");
    assert_string_equal(file_name, "t#3");
    assert_true(stage == 0 && d == 0 && t == 1);
    json_decref(root);
    b->ops->release(region);
}

static void names_cannot_lead_out_of_the_directory(void **state)
{
    bench *b = bench_of(state);
    weir_region *region;
    assert_ok(b->ops->allocate(b->transport, 10, &region));
    weir_shard shard = shard_of("t", 0, 10);
    assert_ok(seal_shards(b, region, &shard, 1, "../../etc", ".."));
    char path[256];
    snprintf(path, sizeof(path), "%s/%%2E.%%2F..%%2Fetc/%%2E..ready", b->directory);
    assert_int_equal(access(path, F_OK), 0);
    char endless[300];
    memset(endless, 'x', sizeof(endless) - 1);
    endless[sizeof(endless) - 1] = '\0';
    assert_int_equal(seal_shards(b, region, &shard, 1, "m", endless), WEIR_ERR_INVALID);
    assert_int_equal(seal_shards(b, region, &shard, 1, "", "l"), WEIR_ERR_INVALID);
    assert_int_equal(seal_shards(b, region, &shard, 1, "m", NULL), WEIR_ERR_INVALID);
    b->ops->release(region);
}

static void a_directory_that_cannot_be_is_an_error(void **state)
{
    bench *b = bench_of(state);
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    weir_transport *transport = NULL;
    assert_int_equal(b->ops->open(&options, &transport), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "transport file: no shared directory is given");
    options.directory = "/nonexistent/weir/shared";
    assert_int_equal(b->ops->open(&options, &transport), WEIR_ERR_NOT_FOUND);
    options.directory = "/dev/null";
    assert_int_equal(b->ops->open(&options, &transport), WEIR_ERR_IO);
    assert_null(transport);
}

#define CASE(function)                                                           \
    {                                                                            \
#function, function, bench_open, bench_close, (void *)(uintptr_t)&shared \
    }

int main(int argc, char **argv)
{
    if (argc == 5)
        return owner_main(argv[1], argv[2], argv[3], atoi(argv[4]));
    const struct CMUnitTest tests[] = {
        CASE(sealed_tensors_are_a_safetensors_file),
        CASE(the_manifest_says_what_is_where),
        CASE(without_its_marker_a_seal_does_not_count),
        CASE(a_file_of_another_length_is_refused),
        CASE(a_file_that_is_cut_while_it_is_read_is_noticed),
        CASE(links_are_not_followed),
        CASE(gaps_between_tensors_cannot_be_read),
        CASE(shards_that_do_not_fit_are_refused),
        CASE(shards_of_one_name_are_tensors_of_their_own),
        CASE(names_cannot_lead_out_of_the_directory),
        CASE(a_directory_that_cannot_be_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
