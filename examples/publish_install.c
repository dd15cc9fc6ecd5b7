/* SPDX-License-Identifier: Apache-2.0 */
/* publish_install.c - a trainer and a replica in one process: publishes one version of a small
 * model and installs it. Run it without arguments; it says what the replica holds.
 */
#include <stdio.h>
#include <stdlib.h>

#include "weir/weir.h"

static const char config_text[] =
    "{\"model_type\": \"llama\", \"torch_dtype\": \"bfloat16\", \"hidden_size\": 256,"
    " \"intermediate_size\": 512, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
    " \"num_key_value_heads\": 2, \"head_dim\": 64, \"vocab_size\": 1000}";

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, weir_last_error());
    return 1;
}

/* What a training framework would hand over: a pointer for every name. */
static int make_weights(weir_tensor *weights, size_t n_weights)
{
    for (size_t i = 0; i < n_weights; i++) {
        uint64_t n_bytes;
        if (weir_tensor_bytes(weights[i].dtype, &weights[i].shape, &n_bytes) != WEIR_OK)
            return fail("weights");
        uint16_t *bf16 = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
        if (bf16 == NULL)
            return 1;
        for (uint64_t k = 0; k < n_bytes / 2; k++)
            bf16[k] = (uint16_t)(0x3c00 + ((uint32_t)k * 2654435761u >> 24)); /* around 0.01 */
        weights[i].data = bf16;
    }
    return 0;
}

static int publish(weir_trainer *trainer, const weir_tensor *weights, size_t n_weights)
{
    weir_report report;
    if (weir_trainer_register(trainer, weights, n_weights) != WEIR_OK ||
        weir_trainer_publish(trainer, 1, &report) != WEIR_OK)
        return fail("publish");
    printf("published version 1: %llu tensors, %llu bytes in %.1f ms\n",
           (unsigned long long)report.n_tensors, (unsigned long long)report.n_bytes,
           report.total_seconds * 1e3);
    return 0;
}

static int install(const char *directory, const char *config_path)
{
    weir_replica_options options = WEIR_REPLICA_OPTIONS_INIT;
    weir_replica *replica;
    weir_report report;
    options.directory = directory;
    options.model = "policy";
    options.conversion = "fp8_128x128";
    options.config = config_path;
    if (weir_replica_open(&options, &replica) != WEIR_OK)
        return fail("replica");
    /* An engine registers its own memory instead: weir_replica_register(). */
    int code = 0;
    if (weir_replica_allocate(replica) != WEIR_OK ||
        weir_replica_install(replica, WEIR_LATEST, &report) != WEIR_OK)
        code = fail("install");
    else
        printf("the replica holds version %llu, %.1f ms after it asked\n",
               (unsigned long long)weir_replica_version(replica), report.total_seconds * 1e3);
    weir_replica_close(replica);
    return code;
}

int main(void)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    weir_config *config = NULL;
    weir_tensor *weights = NULL;
    size_t n_weights = 0;
    char config_path[] = "/tmp/weir-example-XXXXXX";
    FILE *file = fdopen(mkstemp(config_path), "w");
    if (file == NULL || fputs(config_text, file) < 0 || fclose(file) != 0)
        return 1;
    options.model = "policy";
    options.conversion = "fp8_128x128";
    options.config = config_path;
    int code = 0;
    if (weir_config_open(config_path, &config) != WEIR_OK ||
        weir_family_sources("llama", config, WEIR_NAMING_HF, &weights, &n_weights) != WEIR_OK ||
        weir_trainer_open(&options, &trainer) != WEIR_OK)
        code = fail("trainer");
    if (code == 0)
        code = make_weights(weights, n_weights);
    if (code == 0)
        code = publish(trainer, weights, n_weights);
    if (code == 0)
        code = install(weir_trainer_directory(trainer), config_path);
    weir_trainer_close(trainer);
    for (size_t i = 0; i < n_weights; i++)
        free(weights[i].data);
    weir_family_sources_free(weights);
    weir_config_close(config);
    remove(config_path);
    return code;
}
