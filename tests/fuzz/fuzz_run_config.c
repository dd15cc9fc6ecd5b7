/* SPDX-License-Identifier: Apache-2.0 */
/* Any text as a run configuration: problems have a place and a way out, settings are whole. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "weir/run_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void check_problems(const weir_run_config *config)
{
    const weir_run_problem *problem;
    for (size_t i = 0; (problem = weir_run_config_problem(config, i)) != NULL; i++) {
        require(problem->line > 0 && problem->column > 0);
        require(problem->text[0] != '\0' && problem->hint[0] != '\0');
        require(strpbrk(problem->text, "\n\r\033") == NULL);
        require(strpbrk(problem->hint, "\n\r\033") == NULL);
        require(strpbrk(problem->path, "\n\r\033") == NULL);
    }
}

static void check_settings(const weir_run_settings *settings)
{
    require(settings->run != NULL && settings->output_dir != NULL);
    require(settings->trainer.model.name != NULL && settings->orchestrator.model.name != NULL);
    require(settings->trainer.broadcast.host != NULL);
    require(settings->orchestrator.servers.n_items > 0);
    require(settings->trainer.broadcast.type == settings->orchestrator.broadcast.type);
    require(settings->trainer.broadcast.quantize_in_weight_transfer ==
            settings->orchestrator.broadcast.quantize_in_weight_transfer);
    for (size_t i = 0; i < settings->orchestrator.servers.n_items; i++)
        require(settings->orchestrator.servers.items[i] != NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    weir_run_config *config;
    const weir_run_settings *settings;
    if (weir_run_config_parse((const char *)bytes, n_bytes, "fuzz", &config) != WEIR_OK)
        return 0;
    check_problems(config);
    if (weir_run_config_settings(config, &settings) == WEIR_OK)
        check_settings(settings);
    weir_run_field fields[128];
    weir_run_value value;
    size_t n_fields = weir_run_fields(fields, 128);
    for (size_t i = 0; i < n_fields && i < 128; i++)
        (void)weir_run_config_value(config, fields[i].path, &value);
    weir_run_config_close(config);
    return 0;
}
