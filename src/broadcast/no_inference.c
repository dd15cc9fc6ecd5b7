/* SPDX-License-Identifier: Apache-2.0 */
/* no_inference.c - stands for an inference server in a build without libmicrohttpd. */
#include "base/error.h"
#include "weir/inference.h"

weir_status weir_inference_open(const weir_inference_options *options, weir_inference **out)
{
    (void)options, (void)out;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "this build serves no HTTP (WEIR_HTTP, libmicrohttpd-dev)");
}

void weir_inference_close(weir_inference *server)
{
    (void)server;
}

const char *weir_inference_address(const weir_inference *server)
{
    (void)server;
    return "";
}

void weir_inference_get_info(const weir_inference *server, weir_inference_info *out)
{
    (void)server;
    *out = (weir_inference_info){ .state = WEIR_INFERENCE_EMPTY };
}

const weir_tensor *weir_inference_parameters(const weir_inference *server, uint32_t worker,
                                             size_t *out_n)
{
    (void)server, (void)worker;
    *out_n = 0;
    return NULL;
}
