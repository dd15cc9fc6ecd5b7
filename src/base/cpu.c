/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.c - the ladder of instruction sets, climbed once. */
#include "base/cpu.h"

#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/env.h"
#include "weir/convert.h"

static const char *const names[WEIR_N_CPU_LEVELS] = { "c", "avx2", "avx512" };
static const char *why_not[WEIR_N_CPU_LEVELS];
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* clang 14 does not know the name in __builtin_cpu_supports(). */
static bool processor_has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
#endif

static bool processor_has(weir_cpu_level level)
{
#if defined(__x86_64__)
    if (level == WEIR_CPU_AVX2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               processor_has_f16c() && __builtin_cpu_supports("bmi2");
    if (level == WEIR_CPU_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vbmi");
#endif
    return level == WEIR_CPU_C;
}

static void climb(void)
{
    why_not[WEIR_CPU_C] = "";
    for (int level = 1; level < WEIR_N_CPU_LEVELS; level++) {
        if (why_not[level - 1][0] != '\0')
            why_not[level] = "the rung below is off";
        else if (!processor_has((weir_cpu_level)level))
            why_not[level] = "this processor lacks it";
        else if (weir_env_list_has(WEIR_ENV_CPU_DISABLE, names[level]) ||
                 weir_env_list_has(WEIR_ENV_CPU_DISABLE, "all"))
            why_not[level] = "switched off by WEIR_CPU_DISABLE";
        else
            why_not[level] = "";
    }
}

const char *weir_cpu_why_not(weir_cpu_level level)
{
    pthread_once(&once, climb);
    return why_not[level];
}

bool weir_cpu_has(weir_cpu_level level)
{
    return weir_cpu_why_not(level)[0] == '\0';
}

size_t weir_cpu_rungs(weir_cpu_rung *rungs, size_t n_rungs)
{
    for (size_t i = 0; i < n_rungs && i < WEIR_N_CPU_LEVELS; i++) {
        const char *why = weir_cpu_why_not((weir_cpu_level)i);
        rungs[i] = (weir_cpu_rung){ names[i], why[0] == '\0', why };
    }
    return WEIR_N_CPU_LEVELS;
}
