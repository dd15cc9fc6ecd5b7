/* SPDX-License-Identifier: Apache-2.0 */
/* nccl_case.h - transport nccl on fake_nccl.so: loading it, resetting it, one group on it. */
#ifndef WEIR_TESTS_NCCL_CASE_H
#define WEIR_TESTS_NCCL_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "transport/fake_nccl.h"
#include "transport/nccl.h"
#include "transport/transport_table.h"

#define FAKE_LIBRARY "fake_nccl.so"

static fake_nccl *fake;
static int (*fake_current)(void);
static char fake_path[4096];

/* Beside the program, where it was packed, or in the folder of libraries of a build. */
static inline bool find_fake(void)
{
    static const char *const folders[] = { "/", "/../lib/" };
    char program[2048];
    ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (n <= 0)
        return false;
    program[n] = '\0';
    *strrchr(program, '/') = '\0';
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        snprintf(fake_path, sizeof(fake_path), "%s%s" FAKE_LIBRARY, program, folders[i]);
        if (access(fake_path, R_OK) == 0)
            return true;
    }
    return false;
}

/* Makes the fake the library that everything below finds. False, having said why, otherwise. */
static inline bool use_fake(void)
{
    void *library = find_fake() ? dlopen(fake_path, RTLD_NOW | RTLD_LOCAL) : NULL;
    fake = library != NULL ? dlsym(library, "fake_nccl_state") : NULL;
    if (fake != NULL)
        *(void **)&fake_current = dlsym(library, FAKE_CURRENT_SYMBOL);
    if (fake == NULL || fake_current == NULL) {
        fprintf(stderr, "%s cannot be loaded\n", fake_path);
        return false;
    }
    setenv("WEIR_CUDA_LIBRARY", fake_path, 1);
    setenv("WEIR_NCCL_LIBRARY", fake_path, 1);
    fake->version = 22809; /* the library is asked once */
    return true;
}

/* The same, beside the fake of CUDA that knows what is memory of a GPU. */
static inline bool use_fake_with_cuda(void)
{
    if (!use_fake())
        return false;
    memcpy(strstr(fake_path, FAKE_LIBRARY), "fake_cuda.so", sizeof("fake_cuda.so"));
    setenv("WEIR_CUDA_LIBRARY", fake_path, 1);
    return true;
}

/* For each case: everything goes well, at once. */
static inline int reset_fake(void **state)
{
    (void)state;
    memset(fake, 0, sizeof(*fake));
    fake->version = 22809;
    fake->last_error = "";
    return 0;
}

/* Nothing is left of a case, and no rule of NCCL's was broken. */
static inline int check_fake(void **state)
{
    (void)state;
    return fake->n_open != 0 || fake->n_misused != 0 || fake_current() != 0;
}

static inline weir_transport *open_nccl(unsigned device)
{
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    weir_transport *transport = NULL;
    options.device = device;
    if (weir_transport_nccl.open(&options, &transport) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return transport;
}

static inline weir_group_options rank_one_of_three(unsigned timeout_ms)
{
    static const char key[WEIR_GROUP_KEY_BYTES] = "a key";
    weir_group_options options = WEIR_GROUP_OPTIONS_INIT;
    options.key = key;
    options.rank = 1;
    options.n_ranks = 3;
    options.timeout_ms = timeout_ms;
    options.who = "round of version 7";
    return options;
}

static inline weir_group *open_group(weir_transport *transport, unsigned timeout_ms)
{
    weir_group_options options = rank_one_of_three(timeout_ms);
    weir_group *group = NULL;
    if (weir_transport_nccl.group_open(transport, &options, &group) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return group;
}

/* Until it is no longer in progress. */
static inline weir_status await_group(weir_group *group)
{
    weir_status status;
    while ((status = weir_transport_nccl.group_test(group)) == WEIR_IN_PROGRESS)
        weir_sleep_ms(1);
    return status;
}

static inline weir_group *join_group(weir_transport *transport)
{
    weir_group *group = open_group(transport, 20000); /* a busy machine has time */
    if (await_group(group) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return group;
}

#endif
