/* SPDX-License-Identifier: Apache-2.0 */
/* test_undo.c - the undo log of a staged push: what it brings back, and what it must not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "refit/landing.h"
#include "refit/undo.h"
#include "weir/cuda.h"

#define TIMEOUT_MS 1000u

static weir_work *work;

static int open_work(void **state)
{
    (void)state;
    return weir_work_open(WEIR_MEMORY_HOST, 0, NULL, &work) == WEIR_OK ? 0 : -1;
}

static int close_work(void **state)
{
    (void)state;
    weir_work_close(work);
    return 0;
}

/* Notes that `live` is written over with `text`, keeps what is there and writes it. */
static void overwrite(weir_undo *undo, char *live, const char *text)
{
    weir_work_copy copy;
    size_t n_bytes = strlen(text);
    assert_int_equal(weir_undo_note(undo, live, n_bytes, &copy), WEIR_OK);
    memcpy(copy.to, copy.from, n_bytes);
    memcpy(live, text, n_bytes);
}

static void what_was_written_over_comes_back(void **state)
{
    weir_undo undo = { 0 };
    char live[] = "0123456789";
    (void)state;
    assert_int_equal(weir_undo_begin(&undo, work, 8), WEIR_OK);
    overwrite(&undo, live, "abcd");
    overwrite(&undo, live + 2, "xyz");
    assert_string_equal(live, "abxyz56789");
    assert_int_equal(weir_undo_run(&undo, TIMEOUT_MS), WEIR_OK);
    assert_string_equal(live, "0123456789");
    weir_undo_close(&undo);
}

static void notes_whose_copies_were_not_made_bring_nothing_back(void **state)
{
    weir_undo undo = { 0 };
    weir_work_copy copy;
    char live[] = "0123456789";
    (void)state;
    assert_int_equal(weir_undo_begin(&undo, work, 8), WEIR_OK);
    overwrite(&undo, live, "abcd");
    assert_int_equal(weir_undo_note(&undo, live + 4, 4, &copy), WEIR_OK);
    assert_int_equal(weir_undo_note(&undo, live + 8, 1, &copy), WEIR_ERR_INTERNAL);
    assert_non_null(strstr(weir_last_error(), "undo log of 8 bytes is full"));
    weir_undo_forget(&undo, 1);
    overwrite(&undo, live + 6, "EFGH"); /* there is room again */
    assert_int_equal(weir_undo_run(&undo, TIMEOUT_MS), WEIR_OK);
    assert_string_equal(live, "0123456789");
    weir_undo_close(&undo);
}

static void a_broken_log_writes_nothing_and_says_so(void **state)
{
    weir_undo undo = { 0 };
    char live[] = "0123456789";
    (void)state;
    assert_int_equal(weir_undo_begin(&undo, work, 4), WEIR_OK);
    overwrite(&undo, live, "abcd");
    weir_undo_break(&undo);
    assert_int_equal(weir_undo_run(&undo, TIMEOUT_MS), WEIR_ERR_INTERNAL);
    assert_string_equal(live, "abcd456789");
    assert_int_equal(weir_undo_begin(&undo, work, 4), WEIR_OK);
    assert_int_equal(weir_undo_run(&undo, TIMEOUT_MS), WEIR_OK);
    weir_undo_close(&undo);
}

static void what_changed_places_changes_back(void **state)
{
    weir_undo undo = { 0 };
    char live[] = "0123456789";
    (void)state;
    assert_int_equal(weir_undo_begin(&undo, work, 8), WEIR_OK);
    overwrite(&undo, live, "abcd");
    overwrite(&undo, live + 2, "xyz");
    for (int times = 0; times < 2; times++) {
        assert_int_equal(weir_undo_exchange(&undo, true, NULL, TIMEOUT_MS), WEIR_OK);
        assert_string_equal(live, "0123456789");
        assert_int_equal(weir_undo_exchange(&undo, false, NULL, TIMEOUT_MS), WEIR_OK);
        assert_string_equal(live, "abxyz56789");
    }
    weir_undo_break(&undo);
    assert_int_equal(weir_undo_exchange(&undo, true, NULL, TIMEOUT_MS), WEIR_ERR_INTERNAL);
    assert_string_equal(live, "abxyz56789");
    weir_undo_close(&undo);
}

/* A bounce buffer's worth and a little, so that one entry takes two turns. */
static void what_lies_on_a_gpu_changes_places_too(void **state)
{
    weir_undo undo = { 0 };
    weir_work *gpu;
    weir_work_copy copy;
    void *live, *bounce;
    uint64_t n_bytes = WEIR_BOUNCE_BYTES + 100;
    unsigned n_gpus = 0;
    (void)state;
    if (weir_cuda_devices(&n_gpus) != WEIR_OK || n_gpus == 0) {
        if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
            fail_msg("a GPU is required: %s", weir_last_error());
        print_message("needs a GPU: %s\n", weir_last_error());
        skip();
    }
    unsigned char *old = malloc(n_bytes), *fresh = malloc(n_bytes), *found = malloc(n_bytes);
    assert_true(old != NULL && fresh != NULL && found != NULL);
    for (uint64_t i = 0; i < n_bytes; i++) {
        old[i] = (unsigned char)(i * 7);
        fresh[i] = (unsigned char)(i * 11 + 1);
    }
    assert_int_equal(weir_work_open(WEIR_MEMORY_CUDA, 0, NULL, &gpu), WEIR_OK);
    assert_int_equal(weir_work_allocate(gpu, n_bytes, &live), WEIR_OK);
    assert_int_equal(weir_work_allocate(gpu, WEIR_BOUNCE_BYTES, &bounce), WEIR_OK);
    assert_int_equal(weir_undo_begin(&undo, gpu, n_bytes), WEIR_OK);
    assert_int_equal(weir_undo_note(&undo, live, n_bytes, &copy), WEIR_OK);
    memcpy(copy.to, old, n_bytes);
    assert_int_equal(weir_cuda_copy(0, live, fresh, n_bytes, NULL), WEIR_OK);
    assert_int_equal(weir_cuda_stream_wait(0, NULL), WEIR_OK);
    for (int times = 0; times < 2; times++) {
        assert_int_equal(weir_undo_exchange(&undo, times == 0, bounce, TIMEOUT_MS), WEIR_OK);
        assert_int_equal(weir_cuda_copy(0, found, live, n_bytes, NULL), WEIR_OK);
        assert_int_equal(weir_cuda_stream_wait(0, NULL), WEIR_OK);
        assert_memory_equal(found, times == 0 ? old : fresh, n_bytes);
    }
    weir_undo_close(&undo);
    weir_work_free(gpu, live, n_bytes);
    weir_work_free(gpu, bounce, WEIR_BOUNCE_BYTES);
    weir_work_close(gpu);
    free(old);
    free(fresh);
    free(found);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_over_comes_back),
        cmocka_unit_test(notes_whose_copies_were_not_made_bring_nothing_back),
        cmocka_unit_test(a_broken_log_writes_nothing_and_says_so),
        cmocka_unit_test(what_changed_places_changes_back),
        cmocka_unit_test(what_lies_on_a_gpu_changes_places_too),
    };
    return cmocka_run_group_tests(tests, open_work, close_work);
}
