/* SPDX-License-Identifier: Apache-2.0 */
/* refit_rig.h - a directory, trainer ranks and a model in one process, for the tests of refit. */
#ifndef WEIR_TESTS_REFIT_RIG_H
#define WEIR_TESTS_REFIT_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "weir/cuda.h"
#include "weir/weir.h"

#define RIG_RANKS 2
#define RIG_TIMEOUT_MS 3000

/* The weights of a model, made afresh for every version. */
typedef struct rig_model {
    weir_tensor *tensors;
    size_t n;
} rig_model;

typedef struct rig {
    const char *family, *conversion, *transport;
    weir_delivery delivery;
    const char *preset; /* NULL: "ragged" */
    const char *device; /* of replicas; NULL: host memory */
    uint64_t window_bytes;
    bool scan_first;
    weir_wire wire;
    char config_path[64], share[64];
    weir_config *config;
    weir_directory *directory;
    weir_trainer *trainers[RIG_RANKS];
    rig_model model;
    weir_tensor *on_gpu; /* the same tensors on GPU 0, where trainers register them; NULL: none */
} rig;

#define assert_ok(call)                                                                     \
    do {                                                                                    \
        weir_status rig_status = (call);                                                    \
        if (rig_status != WEIR_OK)                                                          \
            fail_msg("%s: %s: %s", #call, weir_status_name(rig_status), weir_last_error()); \
    } while (0)

#define assert_error(call, status, line)                                                       \
    do {                                                                                       \
        weir_status rig_status = (call);                                                       \
        if (rig_status != (status) || strstr(weir_last_error(), line) == NULL)                 \
            fail_msg("%s: got %s: '%s', wanted %s: '%s'", #call, weir_status_name(rig_status), \
                     weir_last_error(), weir_status_name(status), line);                       \
    } while (0)

/* Small finite values that differ from version to version; every BF16 or F32 tensor. */
static inline void rig_fill(rig_model *model, unsigned version)
{
    for (size_t t = 0; t < model->n; t++) {
        uint64_t n_bytes;
        uint32_t x = version * 2654435761u + (uint32_t)t * 40503u + 1;
        assert_ok(weir_tensor_bytes(model->tensors[t].dtype, &model->tensors[t].shape, &n_bytes));
        if (model->tensors[t].dtype == WEIR_BF16) {
            uint16_t *p = model->tensors[t].data;
            for (size_t i = 0; i < n_bytes / 2; i++) {
                x = x * 1664525u + 1013904223u;
                p[i] = (uint16_t)(0x3a00u + (x >> 23)) | (uint16_t)((x & 0x100u) << 7);
            }
        } else {
            float *p = model->tensors[t].data;
            assert_int_equal(model->tensors[t].dtype, WEIR_F32);
            for (size_t i = 0; i < n_bytes / 4; i++) {
                x = x * 1664525u + 1013904223u;
                p[i] = (float)(int32_t)x * 1e-10f;
            }
        }
    }
}

static inline void rig_model_open(rig *r)
{
    assert_ok(
        weir_family_sources(r->family, r->config, WEIR_NAMING_HF, &r->model.tensors, &r->model.n));
    for (size_t t = 0; t < r->model.n; t++) {
        uint64_t n_bytes;
        assert_ok(
            weir_tensor_bytes(r->model.tensors[t].dtype, &r->model.tensors[t].shape, &n_bytes));
        r->model.tensors[t].data = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
        assert_non_null(r->model.tensors[t].data);
    }
}

/* Where a replica's parameters lie on a GPU, so do the trainers' tensors. */
static inline void rig_gpu_open(rig *r)
{
    if (r->device == NULL)
        return;
    r->on_gpu = calloc(r->model.n, sizeof(*r->on_gpu));
    assert_non_null(r->on_gpu);
    for (size_t t = 0; t < r->model.n; t++) {
        uint64_t n_bytes;
        r->on_gpu[t] = r->model.tensors[t];
        assert_ok(weir_tensor_bytes(r->on_gpu[t].dtype, &r->on_gpu[t].shape, &n_bytes));
        assert_ok(weir_cuda_allocate(0, n_bytes, &r->on_gpu[t].data));
    }
}

/* The tensors that trainers register, as they are now. */
static inline const weir_tensor *rig_tensors(const rig *r)
{
    if (r->on_gpu == NULL)
        return r->model.tensors;
    for (size_t t = 0; t < r->model.n; t++) {
        uint64_t n_bytes;
        assert_ok(weir_tensor_bytes(r->on_gpu[t].dtype, &r->on_gpu[t].shape, &n_bytes));
        assert_ok(weir_cuda_copy(0, r->on_gpu[t].data, r->model.tensors[t].data, n_bytes, NULL));
    }
    assert_ok(weir_cuda_stream_wait(0, NULL));
    return r->on_gpu;
}

static inline void rig_gpu_close(rig *r)
{
    for (size_t t = 0; t < r->model.n && r->on_gpu != NULL; t++)
        weir_cuda_free(0, r->on_gpu[t].data);
    free(r->on_gpu);
}

static inline void rig_write_config(rig *r)
{
    char *text;
    assert_ok(weir_family_preset(r->family, r->preset ? r->preset : "ragged", &text));
    snprintf(r->config_path, sizeof(r->config_path), "/tmp/weir-rig-XXXXXX");
    int fd = mkstemp(r->config_path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    weir_string_free(text);
    assert_ok(weir_config_open(r->config_path, &r->config));
    snprintf(r->share, sizeof(r->share), "/tmp/weir-share-XXXXXX");
    assert_non_null(mkdtemp(r->share));
}

static inline weir_trainer *rig_open_trainer(const rig *r, uint32_t rank, unsigned n_slots)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.rank = rank;
    options.n_ranks = RIG_RANKS;
    options.family = r->family;
    options.conversion = r->conversion;
    options.config = r->config_path;
    options.transport = r->transport;
    options.transport_directory = r->share;
    options.n_threads = 1;
    options.n_slots = n_slots;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.delivery = r->delivery;
    options.window_bytes = r->window_bytes;
    options.scan_first = r->scan_first;
    options.wire = r->wire;
    assert_ok(weir_trainer_open(&options, &trainer));
    return trainer;
}

static inline rig *rig_open_as(const rig *wish)
{
    rig *r = malloc(sizeof(*r));
    assert_non_null(r);
    *r = *wish;
    rig_write_config(r);
    rig_model_open(r);
    rig_gpu_open(r);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    assert_ok(weir_directory_open(&options, &r->directory));
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++)
        r->trainers[rank] = rig_open_trainer(r, rank, 2);
    return r;
}

static inline rig *rig_open(const char *family, const char *conversion, const char *transport)
{
    rig wish = { .family = family, .conversion = conversion, .transport = transport };
    return rig_open_as(&wish);
}

static inline void rig_close(rig *r)
{
    char command[128];
    for (int rank = 0; rank < RIG_RANKS; rank++)
        weir_trainer_close(r->trainers[rank]);
    weir_directory_close(r->directory);
    rig_gpu_close(r);
    for (size_t t = 0; t < r->model.n; t++)
        free(r->model.tensors[t].data);
    weir_family_sources_free(r->model.tensors);
    weir_config_close(r->config);
    unlink(r->config_path);
    snprintf(command, sizeof(command), "rm -rf %s", r->share);
    assert_int_equal(system(command), 0);
    free(r);
}

/* New weights, registered and published by every rank. */
static inline void rig_publish(rig *r, unsigned version)
{
    rig_fill(&r->model, version);
    const weir_tensor *tensors = rig_tensors(r);
    for (int rank = 0; rank < RIG_RANKS; rank++) {
        assert_ok(weir_trainer_register(r->trainers[rank], tensors, r->model.n));
        assert_ok(weir_trainer_publish(r->trainers[rank], version, NULL));
    }
}

static inline weir_replica_options rig_replica_options(const rig *r, const char *name,
                                                       weir_install_mode mode)
{
    weir_replica_options options = WEIR_REPLICA_OPTIONS_INIT;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.name = name;
    options.family = r->family;
    options.conversion = r->conversion;
    options.config = r->config_path;
    options.transport_directory = r->share;
    options.install = mode;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.device = r->device;
    options.window_bytes = r->window_bytes;
    options.wire = r->wire;
    return options;
}

static inline weir_replica *rig_open_replica(const rig *r, const char *name, weir_install_mode mode)
{
    weir_replica_options options = rig_replica_options(r, name, mode);
    weir_replica *replica = NULL;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    return replica;
}

/* How many parameters of the replica differ from the rig's weights. */
static inline weir_verify_report rig_verify(const rig *r, const char *name)
{
    weir_verify_options options = WEIR_VERIFY_OPTIONS_INIT;
    weir_verify_report report;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.replica = name;
    options.family = r->family;
    options.conversion = r->conversion;
    options.config = r->config_path;
    options.sources = r->model.tensors;
    options.n_sources = r->model.n;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    assert_ok(weir_verify(&options, &report));
    return report;
}

/* Every byte of the live parameters, one after another. The caller frees it. */
static inline unsigned char *rig_snapshot(const weir_replica *replica, uint64_t *out_n_bytes)
{
    size_t n;
    uint64_t total = 0, n_bytes;
    const weir_tensor *live = weir_replica_parameters(replica, &n);
    for (size_t i = 0; i < n; i++) {
        assert_ok(weir_tensor_bytes(live[i].dtype, &live[i].shape, &n_bytes));
        total += n_bytes;
    }
    unsigned char *all = malloc(total), *at = all;
    assert_non_null(all);
    for (size_t i = 0; i < n; i++) {
        assert_ok(weir_tensor_bytes(live[i].dtype, &live[i].shape, &n_bytes));
        unsigned device;
        weir_error_line line; /* asking is no failure */
        weir_error_save(&line);
        bool on_gpu = weir_cuda_device_of(live[i].data, &device) == WEIR_OK;
        weir_error_restore(&line);
        if (on_gpu) {
            assert_ok(weir_cuda_copy(device, at, live[i].data, n_bytes, NULL));
            assert_ok(weir_cuda_stream_wait(device, NULL));
        } else {
            memcpy(at, live[i].data, n_bytes);
        }
        at += n_bytes;
    }
    *out_n_bytes = total;
    return all;
}

#endif
