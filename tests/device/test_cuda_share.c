/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_share.c - descriptions of GPU memory, and what a hostile one meets. Mapping for good is
 * tested between processes, by tests/transport. */
#include "device/cuda_share.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <unistd.h>

#include "transport/memory_place.h"

#define MIB ((size_t)1 << 20)

static void need_gpu(void)
{
    unsigned n = 0;
    if (weir_cuda_devices(&n) == WEIR_OK)
        return;
    if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
        fail_msg("a GPU is required: %s", weir_last_error());
    print_message("SKIPPED: %s\n", weir_last_error());
    skip();
}

static void *memory_of(const char *how, size_t n_bytes)
{
    memory_place place = place_of(how);
    void *data = NULL;
    if (place_allocate(&place, n_bytes, &data) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return data;
}

static void free_of(const char *how, void *data, size_t n_bytes)
{
    memory_place place = place_of(how);
    place_free(&place, data, n_bytes);
}

static void a_range_is_described_with_its_place_in_its_allocation(void **state)
{
    (void)state;
    need_gpu();
    char *data = memory_of("malloc 0", 8 * MIB);
    weir_cuda_share whole, part;
    assert_int_equal(weir_cuda_share_describe(data, 8 * MIB, &whole), WEIR_OK);
    assert_int_equal(weir_cuda_share_describe(data + 1000, 24, &part), WEIR_OK);
    assert_int_equal(whole.sharing, WEIR_CUDA_SHARING_HANDLE);
    assert_int_equal(whole.offset, 0);
    assert_int_equal(part.offset, 1000);
    assert_int_equal(part.n_bytes, 24);
    assert_int_equal(part.mapped_bytes, whole.mapped_bytes);
    assert_true(part.identity == whole.identity);
    assert_memory_equal(part.handle, whole.handle, sizeof(part.handle));
    assert_non_null(strchr(part.gpu, ':'));
    assert_int_equal(weir_cuda_share_describe(data, whole.mapped_bytes + 1, &part),
                     WEIR_ERR_INVALID);
    free_of("malloc 0", data, 8 * MIB);
}

static void memory_that_was_allocated_again_is_another(void **state)
{
    (void)state;
    need_gpu();
    static const char *const places[] = { "malloc 0", "shareable 0" };
    for (size_t i = 0; i < 2; i++) {
        weir_cuda_share first, second;
        void *data = memory_of(places[i], 4 * MIB);
        assert_int_equal(weir_cuda_share_describe(data, 5, &first), WEIR_OK);
        free_of(places[i], data, 4 * MIB);
        data = memory_of(places[i], 4 * MIB);
        assert_int_equal(weir_cuda_share_describe(data, 5, &second), WEIR_OK);
        assert_true(first.identity != second.identity);
        free_of(places[i], data, 4 * MIB);
    }
}

static void a_range_over_pieces_names_those_it_touches(void **state)
{
    (void)state;
    need_gpu();
    char *data = memory_of("pieces 0", 20 * MIB);
    weir_cuda_share share;
    uint64_t n_bytes = 0;
    int fd = -1;
    assert_int_equal(weir_cuda_share_describe(data + 7 * MIB, 6 * MIB, &share), WEIR_OK);
    assert_int_equal(share.sharing, WEIR_CUDA_SHARING_DESCRIPTOR);
    assert_int_equal(share.offset, 3 * MIB);
    assert_int_equal(share.mapped_bytes, 12 * MIB);
    assert_int_equal(weir_cuda_share_piece(&share, 4 * MIB, &fd, &n_bytes), WEIR_OK);
    assert_true(fd >= 0);
    assert_int_equal(n_bytes, 4 * MIB);
    close(fd);
    assert_int_equal(weir_cuda_share_piece(&share, 5 * MIB, &fd, &n_bytes), WEIR_ERR_INVALID);
    assert_int_equal(weir_cuda_share_piece(&share, 12 * MIB, &fd, &n_bytes), WEIR_ERR_INVALID);
    assert_int_equal(weir_cuda_share_piece(&share, UINT64_MAX, &fd, &n_bytes), WEIR_ERR_INVALID);
    assert_int_equal(weir_cuda_share_describe(data + 19 * MIB, 2 * MIB, &share),
                     WEIR_ERR_INVALID); /* beyond the last */
    free_of("pieces 0", data, 20 * MIB);
}

/* Gives pieces of the size that the test wants, and a descriptor of no GPU memory. */
static weir_status give_junk(void *context, uint64_t at, int *out_fd, uint64_t *out_bytes)
{
    (void)at;
    *out_bytes = *(uint64_t *)context;
    *out_fd = dup(STDERR_FILENO);
    return WEIR_OK;
}

static void assert_refused(const weir_cuda_share *share, uint64_t piece_bytes, weir_status expected)
{
    weir_cuda_importer importer = { .who = "owner 7", .piece = give_junk, .context = &piece_bytes };
    weir_cuda_mapping *mapping = NULL;
    void *data = NULL;
    assert_int_equal(weir_cuda_share_open(share, &importer, &mapping, &data), expected);
    assert_memory_equal(weir_last_error(), "owner 7", 7);
    assert_true(mapping == NULL && data == NULL);
}

static void hostile_descriptions_are_refused(void **state)
{
    (void)state;
    need_gpu();
    const weir_cuda_share sound = { .sharing = WEIR_CUDA_SHARING_DESCRIPTOR,
                                    .n_bytes = MIB,
                                    .mapped_bytes = 4 * MIB,
                                    .gpu = "0000:01:00.0" };
    weir_cuda_share share = sound;
    share.sharing = 77;
    assert_refused(&share, 0, WEIR_ERR_CORRUPT);
    share = sound;
    memset(share.gpu, 'x', sizeof(share.gpu));
    assert_refused(&share, 0, WEIR_ERR_CORRUPT);
    share = sound;
    share.offset = 4 * MIB - 1;
    assert_refused(&share, 0, WEIR_ERR_CORRUPT);
    share.offset = UINT64_MAX;
    assert_refused(&share, 0, WEIR_ERR_CORRUPT);
    share = sound;
    share.mapped_bytes = UINT64_MAX;
    assert_refused(&share, 0, WEIR_ERR_CORRUPT);
    assert_refused(&sound, 0, WEIR_ERR_CORRUPT);
    assert_refused(&sound, 6 * MIB, WEIR_ERR_CORRUPT);
    assert_refused(&sound, 2 * MIB, WEIR_ERR_UNSUPPORTED); /* CUDA finds that out */
    assert_refused(&sound, 1, WEIR_ERR_UNSUPPORTED);
    share = sound;
    share.sharing = WEIR_CUDA_SHARING_HANDLE;
    memset(share.handle, 0x5a, sizeof(share.handle));
    assert_refused(&share, 0, WEIR_ERR_UNSUPPORTED);
    void *data = memory_of("malloc 0", 100); /* and nothing is left behind of the failures */
    free_of("malloc 0", data, 100);
}

static void here_takes_no_address_that_is_none(void **state)
{
    (void)state;
    need_gpu();
    weir_cuda_share share = { .sharing = WEIR_CUDA_SHARING_HANDLE,
                              .address = (uintptr_t)&share,
                              .n_bytes = 1,
                              .mapped_bytes = 1 };
    void *data = NULL;
    assert_int_equal(weir_cuda_share_here(&share, 0, "owner 7", &data), WEIR_ERR_CORRUPT);
    assert_null(data);
}

static void a_pointer_tells_its_device(void **state)
{
    (void)state;
    need_gpu();
    static const char *const places[] = { "malloc 0", "shareable 0" };
    unsigned device = 77;
    int word = 0;
    for (size_t i = 0; i < 2; i++) {
        char *data = memory_of(places[i], 4096);
        assert_int_equal(weir_cuda_device_of(data + 5, &device), WEIR_OK);
        assert_int_equal(device, 0);
        free_of(places[i], data, 4096);
    }
    void *pinned = memory_of("pinned", 4096);
    assert_int_equal(weir_cuda_device_of(&word, &device), WEIR_ERR_INVALID);
    assert_int_equal(weir_cuda_device_of(pinned, &device), WEIR_ERR_INVALID);
    free_of("pinned", pinned, 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_range_is_described_with_its_place_in_its_allocation),
        cmocka_unit_test(memory_that_was_allocated_again_is_another),
        cmocka_unit_test(a_range_over_pieces_names_those_it_touches),
        cmocka_unit_test(hostile_descriptions_are_refused),
        cmocka_unit_test(here_takes_no_address_that_is_none),
        cmocka_unit_test(a_pointer_tells_its_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
