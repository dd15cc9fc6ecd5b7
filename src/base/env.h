/* SPDX-License-Identifier: Apache-2.0 */
/* env.h - the one table of environment variables. Nothing else in the library calls getenv. */
#ifndef WEIR_BASE_ENV_H
#define WEIR_BASE_ENV_H

#include <stdbool.h>

/* X(id, name, type, default, help) */
#define WEIR_ENV_LIST(X)                                                                           \
    X(CPU_DISABLE, "WEIR_CPU_DISABLE", "list", "",                                                 \
      "comma-separated rungs of the CPU ladder to leave unused: avx512, avx2, all")                \
    X(THREADS, "WEIR_THREADS", "integer", "one per core",                                          \
      "threads of a pool that was opened without a number")                                        \
    X(UCX_TLS, "WEIR_UCX_TLS", "string", "all",                                                    \
      "UCX transports that transport ucx may use, \"tcp\" say; as UCX_TLS")                        \
    X(UCX_KEEPALIVE_MS, "WEIR_UCX_KEEPALIVE_MS", "integer", "1000",                                \
      "how often UCX looks whether a peer is alive; a dead one is noticed within twice that")        \
    X(CUDA_LIBRARY, "WEIR_CUDA_LIBRARY", "string", "beside libweir.so",                            \
      "path of libweir_cuda.so, which holds everything that needs a GPU")                           \
    X(NCCL_LIBRARY, "WEIR_NCCL_LIBRARY", "string", "libnccl.so.2",                                 \
      "path of NCCL for transport nccl, where the process has no copy of it already")              \
    X(REDIS_VOLATILE, "WEIR_REDIS_VOLATILE", "integer", "0",                                       \
      "1: a directory may keep its records in a Redis that keeps nothing on disk")                 \
    X(TLS_CERTIFICATE, "WEIR_TLS_CERTIFICATE", "path", "",                                         \
      "PEM file: what listens speaks TLS alone, and who calls shows it")                           \
    X(TLS_KEY, "WEIR_TLS_KEY", "path", "", "PEM file: the certificate's private key")              \
    X(TLS_CA, "WEIR_TLS_CA", "path", "",                                                           \
      "PEM file, or \"system\": whose signature is believed; calls are made with TLS alone, and "    \
      "callers must show a certificate of it")                                                     \
    X(TOKEN_FILE, "WEIR_TOKEN_FILE", "path", "",                                                   \
      "holds the bearer token that is sent with every call and asked of every caller")             \
    X(INSECURE, "WEIR_INSECURE", "integer", "0",                                                   \
      "1: listens beyond loopback without TLS or without a token, and sends tokens as they are")

typedef enum weir_env_id {
#define WEIR_ENV_ENUM(id, name, type, def, help) WEIR_ENV_##id,
    WEIR_ENV_LIST(WEIR_ENV_ENUM)
#undef WEIR_ENV_ENUM
    WEIR_ENV_COUNT
} weir_env_id;

const char *weir_env_string(weir_env_id id);                  /* NULL when not set or empty */
unsigned weir_env_unsigned(weir_env_id id, unsigned fallback); /* fallback when not a number */
/* Whether a variable of another library is set, "UCX_TLS" say: its user's choice then stands, and
 * Weir's default for that library is not applied. */
bool weir_env_foreign_is_set(const char *name);
const char *weir_env_foreign(const char *name); /* NULL: not set */
/* Whether it is set to `value`. */
bool weir_env_foreign_is(const char *name, const char *value);
/* True when `word` is in the comma-separated list, case ignored. */
bool weir_env_list_has(weir_env_id id, const char *word);

#endif
