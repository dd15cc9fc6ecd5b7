/* SPDX-License-Identifier: Apache-2.0 */
/* no_orchestrator.c - stands for an orchestrator in a build without libcurl. */
#include "base/error.h"
#include "weir/orchestrate.h"

static weir_status not_built(void)
{
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "this build calls no servers (WEIR_CURL, libcurl4-openssl-dev)");
}

weir_status weir_orchestrator_open(const weir_orchestrator_options *options,
                                   weir_orchestrator **out)
{
    (void)options, (void)out;
    return not_built();
}

void weir_orchestrator_close(weir_orchestrator *orchestrator)
{
    (void)orchestrator;
}

weir_status weir_orchestrator_init(weir_orchestrator *orchestrator)
{
    (void)orchestrator;
    return not_built();
}

weir_status weir_orchestrator_step(weir_orchestrator *orchestrator,
                                   weir_orchestration_report *report)
{
    (void)orchestrator, (void)report;
    return not_built();
}

void weir_orchestrator_cancel(weir_orchestrator *orchestrator)
{
    (void)orchestrator;
}

size_t weir_orchestrator_servers(const weir_orchestrator *orchestrator)
{
    (void)orchestrator;
    return 0;
}

void weir_orchestrator_server(const weir_orchestrator *orchestrator, size_t i,
                              weir_server_info *out)
{
    (void)orchestrator, (void)i;
    *out = (weir_server_info){ .url = "" };
}
