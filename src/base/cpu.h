/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.h - what this processor has, less what WEIR_CPU_DISABLE switches off. */
#ifndef WEIR_BASE_CPU_H
#define WEIR_BASE_CPU_H

#include <stdbool.h>

typedef enum weir_cpu_level {
    WEIR_CPU_C = 0,
    WEIR_CPU_AVX2 = 1,   /* with FMA, F16C, BMI2: x86-64-v3 */
    WEIR_CPU_AVX512 = 2, /* F, BW, DQ, VL, VBMI: Ice Lake, Zen 4 and later */
    WEIR_N_CPU_LEVELS
} weir_cpu_level;

/* A ladder: a level is there only if the one below is. Read once, at the first call. */
bool weir_cpu_has(weir_cpu_level level);
/* "" when it is in use, else why not. */
const char *weir_cpu_why_not(weir_cpu_level level);

#endif
