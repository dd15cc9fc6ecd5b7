/* SPDX-License-Identifier: Apache-2.0 */
/* publish_job.c - a trainer of the public API, and what it registers: a checkpoint, a rank's shards
 * of one, or their copies on a GPU. */
#include "publish_job.h"

#include <stdlib.h>
#include <string.h>

static weir_trainer *_Atomic open_trainer; /* for the signal handler */

static void cancel(void)
{
    weir_trainer *waiting = open_trainer;
    if (waiting != NULL)
        weir_trainer_cancel(waiting);
}

void weir_publish_job_begin(void)
{
    weir_cli_catch_signals();
    weir_cli_on_stop(cancel);
}

int weir_publish_job_take_mesh(const char *verb, const char *text, weir_publish_job *job)
{
    weir_trainer_mesh mesh;
    job->mesh = text;
    return weir_trainer_mesh_parse(text, &mesh) == WEIR_OK
               ? WEIR_EXIT_OK
               : weir_cli_usage_error(verb, "--mesh: %s", weir_last_error());
}

static int start_trainer(weir_publish_job *job)
{
    const weir_flow_options *flow = &job->flow;
    weir_trainer_options trainer = WEIR_TRAINER_OPTIONS_INIT;
    trainer.directory = flow->directory;
    trainer.model = flow->model;
    trainer.run = flow->run;
    trainer.rank = (uint32_t)job->rank;
    trainer.n_ranks = (uint32_t)job->n_ranks;
    trainer.family = flow->family;
    trainer.layout = flow->layout;
    trainer.conversion = flow->conversion;
    trainer.config = job->source.config[0] != '\0' ? job->source.config : NULL;
    trainer.transport = flow->transport;
    trainer.transport_directory = flow->transport_directory;
    trainer.listen = flow->listen;
    trainer.n_slots = (unsigned)job->n_slots;
    trainer.n_threads = flow->n_threads;
    trainer.timeout_ms = flow->timeout_ms;
    trainer.lease_ms = flow->lease_ms;
    trainer.keep_masters = flow->keep_masters;
    trainer.ignore = flow->ignore;
    trainer.n_ignore = flow->n_ignore;
    trainer.progress = weir_flow_progress;
    trainer.progress_context = &job->flow;
    trainer.delivery = job->delivery;
    trainer.window_bytes = job->window_bytes;
    trainer.scan_first = job->scan_first;
    trainer.traceparent = job->traceparent;
    trainer.mesh = job->mesh;
    trainer.expert_owners = job->owners;
    trainer.replica_mesh = flow->replica_mesh;
    trainer.replica_experts = flow->replica_experts;
    trainer.wire = flow->wire;
    if (weir_trainer_open(&trainer, &job->trainer) != WEIR_OK)
        return weir_cli_fail();
    open_trainer = job->trainer;
    return WEIR_EXIT_OK;
}

/* The same shards, their memory on the GPU. */
static int upload_shards(weir_publish_job *job)
{
    weir_mesh_shards *shards = &job->shards;
    weir_tensor *locals = calloc(shards->n_shards + 1, sizeof(*locals));
    if (locals == NULL)
        return weir_cli_error("out of memory");
    for (size_t i = 0; i < shards->n_shards; i++)
        locals[i] = shards->shards[i].local;
    job->upload.device = job->device.number;
    bool done = weir_gpu_upload_tensors(&job->upload, locals, shards->n_shards);
    free(locals);
    for (size_t i = 0; i < shards->n_shards && done; i++)
        shards->shards[i].local.data = job->upload.tensors[i].data;
    return done ? WEIR_EXIT_OK : WEIR_EXIT_FAILED;
}

/* Cuts this rank's shards out of the open source, into memory of their own. */
static int register_shards(weir_publish_job *job, const weir_tensor *tensors, size_t n_tensors)
{
    const weir_flow_options *flow = &job->flow;
    weir_mesh_cut cut = { .mesh = job->mesh,
                          .owners = job->owners,
                          .rank = (uint32_t)job->rank,
                          .family = flow->family,
                          .layout = flow->layout,
                          .conversion = flow->conversion,
                          .config = job->source.config,
                          .ignore = flow->ignore,
                          .n_ignore = flow->n_ignore };
    weir_mesh_shards before = job->shards;
    if (!weir_mesh_shards_cut(&cut, tensors, n_tensors, &job->shards)) {
        job->shards = before;
        return WEIR_EXIT_FAILED;
    }
    int code = job->device.cuda ? upload_shards(job) : WEIR_EXIT_OK;
    if (code == WEIR_EXIT_OK && weir_trainer_register_shards(job->trainer, job->shards.shards,
                                                             job->shards.n_shards) != WEIR_OK)
        code = weir_cli_fail();
    weir_mesh_shards_close(&before);
    return code;
}

/* Gives the trainer the weights of the open source. */
static int register_source(weir_publish_job *job)
{
    size_t n_tensors;
    const weir_tensor *tensors = weir_checkpoint_tensors(job->source.checkpoint, &n_tensors);
    if (job->mesh != NULL)
        return register_shards(job, tensors, n_tensors);
    if (job->device.cuda) {
        job->upload.device = job->device.number;
        if (!weir_gpu_upload_tensors(&job->upload, tensors, n_tensors))
            return WEIR_EXIT_FAILED;
        tensors = job->upload.tensors;
    }
    return weir_trainer_register(job->trainer, tensors, n_tensors) == WEIR_OK ? WEIR_EXIT_OK
                                                                              : weir_cli_fail();
}

int weir_publish_job_take_delivery(const char *verb, const char *text, weir_publish_job *job)
{
    if (strcmp(text, "push") != 0 && strcmp(text, "pull") != 0)
        return weir_cli_usage_error(verb, "--delivery takes push or pull, got '%s'", text);
    job->delivery = text[2] == 's' ? WEIR_DELIVERY_PUSH : WEIR_DELIVERY_PULL;
    return WEIR_EXIT_OK;
}

int weir_publish_job_take_source(weir_publish_job *job, const char *path)
{
    weir_flow_source before = job->source;
    int code = WEIR_EXIT_OK;
    if (!weir_flow_source_open(&job->flow, &path, 1, &job->source)) {
        job->source = before;
        return WEIR_EXIT_FAILED;
    }
    if (job->trainer == NULL)
        code = start_trainer(job);
    if (code == WEIR_EXIT_OK)
        code = register_source(job);
    weir_flow_source_close(&before);
    return code;
}

bool weir_publish_job_next_line(char line[WEIR_SOURCE_LINE], int *out_code)
{
    while (!weir_cli_stopped() && fgets(line, WEIR_SOURCE_LINE, stdin) != NULL) {
        size_t n = strcspn(line, "\n");
        if (n == WEIR_SOURCE_LINE - 1) {
            *out_code = weir_cli_error("a line of stdin has more than %zu characters", n - 1);
            return false;
        }
        line[n] = '\0';
        if (n != 0)
            return true;
    }
    return false;
}

int weir_publish_job_failed(void)
{
    weir_flow_progress_end();
    return weir_cli_stopped() ? WEIR_EXIT_OK : weir_cli_fail();
}

void weir_publish_job_close(weir_publish_job *job)
{
    weir_cli_on_stop(NULL);
    open_trainer = NULL;
    weir_trainer_close(job->trainer);
    weir_gpu_upload_close(&job->upload);
    weir_mesh_shards_close(&job->shards);
    weir_flow_source_close(&job->source);
}
