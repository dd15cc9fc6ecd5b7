/* SPDX-License-Identifier: Apache-2.0 */
/* config_case.h - what the tests of run configurations share: reading a text, and saying which
 * problems it has. */
#ifndef WEIR_TESTS_CONFIG_CASE_H
#define WEIR_TESTS_CONFIG_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "weir/run_config.h"

static inline weir_run_config *config_of(const char *text)
{
    weir_run_config *config = NULL;
    if (weir_run_config_parse(text, strlen(text), "F", &config) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return config;
}

/* "LINE:COLUMN path: text" of a problem, NULL beyond the last. */
static inline const char *problem_line(const weir_run_config *config, size_t index)
{
    static char line[1024];
    const weir_run_problem *problem = weir_run_config_problem(config, index);
    if (problem == NULL)
        return NULL;
    assert_string_equal(problem->file, "F");
    assert_true(problem->hint[0] != '\0');
    snprintf(line, sizeof(line), "%u:%u %s: %s", problem->line, problem->column, problem->path,
             problem->text);
    return line;
}

static inline void expect_problems(const char *text, const char *const *lines, size_t n_lines)
{
    weir_run_config *config = config_of(text);
    const char *line;
    for (size_t i = 0; (line = problem_line(config, i)) != NULL; i++)
        if (i >= n_lines || strcmp(line, lines[i]) != 0)
            fail_msg("problem %zu: expected '%s', got '%s' of\n%s", i,
                     i < n_lines ? lines[i] : "none", line, text);
    if (weir_run_config_problems(config) != n_lines)
        fail_msg("expected '%s' of\n%s", lines[weir_run_config_problems(config)], text);
    weir_run_config_close(config);
}

/* Exactly these problems, in this order. */
#define EXPECT(text, ...)                                                  \
    do {                                                                   \
        const char *const lines_[] = { __VA_ARGS__ };                      \
        expect_problems(text, lines_, sizeof(lines_) / sizeof(lines_[0])); \
    } while (0)

static inline void expect_none(const char *text)
{
    expect_problems(text, NULL, 0);
}

/* The hint of the first problem. */
static inline void expect_hint(const char *text, const char *hint)
{
    weir_run_config *config = config_of(text);
    assert_true(weir_run_config_problems(config) > 0);
    assert_string_equal(weir_run_config_problem(config, 0)->hint, hint);
    weir_run_config_close(config);
}

/* The settings of a text without problems; *out_config is to be closed. */
static inline const weir_run_settings *settings_of(const char *text, weir_run_config **out_config)
{
    const weir_run_settings *settings = NULL;
    *out_config = config_of(text);
    if (weir_run_config_settings(*out_config, &settings) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return settings;
}

#endif
