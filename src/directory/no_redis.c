/* SPDX-License-Identifier: Apache-2.0 */
/* no_redis.c - stands for redis_log.c in a build without hiredis. */
#include "base/error.h"
#include "directory/directory_log.h"

weir_status weir_redis_log_open(const weir_redis_log_options *options,
                                const weir_log_reader *reader, weir_directory_log **out)
{
    (void)options, (void)reader, (void)out;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "this build has no Redis (WEIR_REDIS, libhiredis-dev)");
}

weir_status weir_redis_log_attach(weir_directory_log *log, weir_rpc_server *server)
{
    (void)log, (void)server;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "this build has no Redis (WEIR_REDIS, libhiredis-dev)");
}
