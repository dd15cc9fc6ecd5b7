/* SPDX-License-Identifier: Apache-2.0 */
/* judge_finding.c - findings as texts in an arena. */
#include "directory/judge_finding.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_TEXT_BYTES 256u

const char *weir_judge_text(weir_judge_findings *to, const char *format, ...)
{
    char text[2 * MAX_TEXT_BYTES + 128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    const char *copy = weir_arena_strdup(to->arena, text);
    if (copy == NULL)
        to->status = WEIR_ERR_NO_MEMORY;
    return copy != NULL ? copy : "";
}

const char *weir_judge_cut(weir_judge_findings *to, const char *text)
{
    size_t n = strnlen(text, MAX_TEXT_BYTES);
    while (n == MAX_TEXT_BYTES && n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
        n--;
    if (n > MAX_TEXT_BYTES - 4 && text[n] != '\0')
        return weir_judge_text(to, "%.*s...", (int)n, text);
    return weir_judge_text(to, "%.*s", (int)n, text);
}

/* The last places are for what is not ok: however many questions there are, a "no" is kept. */
static void add(weir_judge_findings *to, const weir_finding *finding)
{
    weir_candidate *candidate = &to->judged->candidate;
    size_t n_room = finding->ok ? WEIR_MAX_FINDINGS - 2 : WEIR_MAX_FINDINGS;
    if (candidate->n_findings < n_room)
        to->judged->findings[candidate->n_findings++] = *finding;
}

void weir_judge_say(weir_judge_findings *to, const char *field, bool ok, const char *wanted,
                    const char *found)
{
    const weir_finding finding = { .field = field,
                                   .wanted = wanted != NULL ? wanted : "any",
                                   .found = found != NULL && found[0] != '\0'
                                                ? weir_judge_cut(to, found)
                                                : "not said",
                                   .ok = ok };
    add(to, &finding);
}

void weir_judge_say_of(weir_judge_findings *to, const char *field, const char *tensor,
                       const char *wanted, const char *found)
{
    const weir_finding finding = {
        .field = field, .wanted = wanted, .found = found, .tensor = weir_judge_cut(to, tensor)
    };
    add(to, &finding);
}

void weir_judge_conclude(weir_judge_findings *to)
{
    weir_candidate *candidate = &to->judged->candidate;
    for (size_t i = 0; i < candidate->n_findings; i++) {
        const weir_finding *finding = &to->judged->findings[i];
        if (finding->ok)
            continue;
        candidate->taken = false;
        candidate->reason =
            finding->tensor != NULL
                ? weir_judge_text(to, "%s of %s: wanted %s, found %s", finding->field,
                                  finding->tensor, finding->wanted, finding->found)
                : weir_judge_text(to, "%s: wanted %s, found %s", finding->field, finding->wanted,
                                  finding->found);
        return;
    }
    candidate->taken = true;
    candidate->reason = "";
}
