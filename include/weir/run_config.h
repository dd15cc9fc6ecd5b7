/* SPDX-License-Identifier: Apache-2.0 */
/* run_config.h - the run configuration that a trainer, an orchestrator and inference servers share:
 * one YAML file, read, completed and checked as a whole. docs/run-config.md lists the fields.
 *
 * Threads    a run configuration is immutable once it is open: read it from any thread.
 * Ownership  everything given out belongs to the handle, weir_run_fields() excepted, which is
 *            constant.
 * Errors     what is wrong with the file is a list of problems, each with its place and the way out;
 *            opening succeeds all the same, so that all of them can be shown. The settings are given
 *            only where there is none. ERR_NOT_FOUND, ERR_IO: the file cannot be read.
 *            ERR_UNSUPPORTED: a build without YAML (WEIR_YAML).
 */
#ifndef WEIR_RUN_CONFIG_H
#define WEIR_RUN_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- opening ---------------------------------------------------------------------------------*/

#define WEIR_RUN_CONFIG_MAX_BYTES 262144u

typedef struct weir_run_config weir_run_config;

/* Reads a file, gives every part what it does not say itself (docs/run-config.md tells from where),
 * then checks the whole. In kernel mode the config.json of the inference model is read too, where
 * inference.model.path or .name is a directory of this machine. Gives *out. */
WEIR_API weir_status weir_run_config_open(const char *path, weir_run_config **out);
/* The same of a run whose trainer's machine is known when it is started: trainer_host stands for
 * orchestrator.weight_broadcast.host, and the trainer listens at 0.0.0.0 where the file says no address
 * for it. NULL: as the file says. */
WEIR_API weir_status weir_run_config_open_at(const char *path, const char *trainer_host,
                                             weir_run_config **out);
/* The same of a text; `what` names it in problems. */
WEIR_API weir_status weir_run_config_parse(const char *text, size_t n_bytes, const char *what,
                                           weir_run_config **out);
WEIR_API void weir_run_config_close(weir_run_config *config); /* accepts NULL */

/* ---- problems --------------------------------------------------------------------------------*/

/* One thing that is wrong. Lines and columns count from 1. */
typedef struct weir_run_problem {
    const char *file;
    uint32_t line, column;  /* of the value that caused it, wherever that was written */
    const char *path;       /* its field, "trainer.weight_broadcast.port"; "" for broken YAML */
    const char *text;       /* what is wrong, one line */
    const char *hint;       /* the way out, one line */
} weir_run_problem;

/* Those of the file first, from top to bottom, then those of the rules, in their order. At most
 * 100 are kept. */
WEIR_API size_t weir_run_config_problems(const weir_run_config *config);
/* NULL beyond the last. */
WEIR_API const weir_run_problem *weir_run_config_problem(const weir_run_config *config,
                                                         size_t index);

/* ---- settings --------------------------------------------------------------------------------*/

typedef enum weir_run_type {
    WEIR_RUN_FILESYSTEM = 0, /* through files of a shared directory */
    WEIR_RUN_NCCL = 1,       /* a broadcast: both sides post the same sends and receives */
} weir_run_type;

/* What carries a broadcast. */
typedef enum weir_run_transport {
    WEIR_RUN_BY_NCCL = 0,     /* GPUs */
    WEIR_RUN_BY_UCX = 1,      /* the same protocol without GPUs */
    WEIR_RUN_BY_CUDA_IPC = 2, /* GPUs of one machine */
    WEIR_RUN_BY_AUTO = 3,     /* the first of these that can, where the weights lie */
} weir_run_transport;

typedef enum weir_run_deployment {
    WEIR_RUN_SINGLE_NODE = 0,
    WEIR_RUN_MULTI_NODE = 1,
} weir_run_deployment;

/* How the trainer's framework builds its model. */
typedef enum weir_run_impl {
    WEIR_RUN_IMPL_HF = 0,
    WEIR_RUN_IMPL_LIGER_KERNEL = 1,
    WEIR_RUN_IMPL_CUSTOM = 2,
    WEIR_RUN_IMPL_AUTO = 3,
} weir_run_impl;

/* What the orchestrator does about a server that is slow or dead. */
typedef enum weir_run_policy {
    WEIR_RUN_ABORT = 0, /* all keep the old version */
    WEIR_RUN_DROP = 1,  /* the others go on without it */
    WEIR_RUN_WAIT = 2,  /* until the time-out, then as abort */
} weir_run_policy;

/* weight_broadcast of one block. Members that a block has no field for are 0 or NULL. */
typedef struct weir_run_broadcast {
    bool present; /* the shared block: whether the file has it */
    weir_run_type type;
    weir_run_transport transport;
    const char *host;
    uint32_t port, timeout_s;
    uint32_t inference_world_size; /* workers of all servers */
    uint32_t window_bytes; /* of a trainer rank; 0: as weir_trainer_options.window_bytes has it */
    bool quantize_in_weight_transfer;
    const char *marker_dir; /* NULL: no marker files */
} weir_run_broadcast;

typedef struct weir_run_model {
    const char *name;
    const char *path; /* NULL: no local directory is said */
} weir_run_model;

typedef struct weir_run_texts {
    const char *const *items;
    size_t n_items;
} weir_run_texts;

/* Every field of the file, complete. Later versions may append. */
typedef struct weir_run_settings {
    const char *run, *output_dir;
    uint32_t max_steps; /* 0: no end */
    uint32_t max_async_level;
    weir_run_model model;
    struct {
        weir_run_deployment type;
        uint32_t num_train_gpus, num_infer_gpus, gpus_per_node, num_infer_nodes;
    } deployment;
    weir_run_broadcast broadcast;
    struct {
        bool present;
        weir_run_model model;
        uint32_t tp, dp, ep;    /* ep above 1: a server's tp * dp workers are one engine */
        const char *experts;    /* JSON: the expert ids of each of its ep ranks; NULL: contiguous */
        const char *conversion; /* "auto": by the model's quantization_config */
        const char *layout;     /* NULL: the family's default */
        weir_run_broadcast broadcast;
    } inference;
    struct {
        weir_run_model model;
        weir_run_impl impl;
        struct {
            bool present;
            uint32_t rank, alpha;
        } lora;
        uint32_t max_async_level;
        weir_run_broadcast broadcast;
    } trainer;
    struct {
        weir_run_model model; /* its path is NULL */
        weir_run_texts servers;
        weir_run_policy server_policy;
        uint32_t max_async_level;
        weir_run_broadcast broadcast;
    } orchestrator;
    /* What the inference model's config.json says, in kernel mode and where it is on this machine;
     * else NULL, and a conversion that is named. */
    const char *family, *conversion;
} weir_run_settings;

/* Gives the settings, which live as long as the handle. ERR_INVALID where there are problems: the
 * line is the first of them, and how many more there are. */
WEIR_API weir_status weir_run_config_settings(const weir_run_config *config,
                                              const weir_run_settings **out);

/* ---- ranks -----------------------------------------------------------------------------------*/

/* All servers are of the same tp and dp. */
typedef struct weir_run_group {
    uint32_t n_servers, tp, dp;
} weir_run_group;

/* Workers of all servers, and the trainer: n_servers * tp * dp + 1. ERR_INVALID for a zero and for
 * what has no number. */
WEIR_API weir_status weir_run_group_size(const weir_run_group *group, uint32_t *out_size);
/* server_rank * tp * dp + dp_rank * tp + tp_rank + 1; rank 0 is the trainer's. ERR_INVALID for a
 * rank beyond its count. */
WEIR_API weir_status weir_run_worker_rank(const weir_run_group *group, uint32_t server_rank,
                                          uint32_t dp_rank, uint32_t tp_rank, uint32_t *out_rank);
/* What the orchestrator tells server `server_rank` where engines number their devices by themselves:
 * server_rank * (inference_world_size / n_servers). ERR_INVALID where that leaves a rest. */
WEIR_API weir_status weir_run_rank_offset(uint32_t inference_world_size, uint32_t n_servers,
                                          uint32_t server_rank, uint32_t *out_offset);
/* rank_offset + device_index + 1. ERR_INVALID beyond inference_world_size. */
WEIR_API weir_status weir_run_offset_rank(uint32_t rank_offset, uint32_t device_index,
                                          uint32_t inference_world_size, uint32_t *out_rank);

/* ---- fields, for programs that list them -----------------------------------------------------*/

typedef struct weir_run_field {
    const char *path;
    const char *type;           /* "block", "text", "list", "integer", "boolean", "choice" */
    const char *default_value;  /* NULL: none */
    const char *from;           /* the field that gives the value where this one is not written, or
                                   several with | between them, of which the first that is there
                                   does; NULL: none */
    const char *choices;        /* of a choice: "nccl|filesystem" */
    uint32_t least, most;       /* of an integer */
    bool optional;              /* of a block: it makes a difference whether it is there */
    const char *help;
} weir_run_field;

/* In the order of a file, a block before its fields. Writes at most n_fields; returns how many there
 * are. */
WEIR_API size_t weir_run_fields(weir_run_field *fields, size_t n_fields);

/* What a field holds after all is completed. */
typedef struct weir_run_value {
    const char *const *items;   /* one text, those of a list, none of a block */
    size_t n_items;
    const char *source;         /* the field it was written for; NULL: not written anywhere */
    uint32_t line;              /* where that is; 0: nowhere */
} weir_run_value;
/* False where the field has no value, its block is not there, or there is no such field. */
WEIR_API bool weir_run_config_value(const weir_run_config *config, const char *path,
                                    weir_run_value *out);

#ifdef __cplusplus
}
#endif
#endif
