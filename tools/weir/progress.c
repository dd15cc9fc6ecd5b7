/* SPDX-License-Identifier: Apache-2.0 */
/* progress.c - one line on stderr about work in bytes: share, amount, rate, time left.
 *
 * On a terminal the line is redrawn in place. When it was asked for and stderr is a file or a pipe,
 * whole lines are written, one per second. It never touches stdout.
 */
#include <stdio.h>
#include <unistd.h>

#include "cli.h"

#define BAR_CELLS 24

void weir_progress_bar_begin(weir_progress_bar *bar, const char *label, uint64_t total_bytes,
                             bool forced)
{
    bool terminal = isatty(STDERR_FILENO) != 0;
    *bar = (weir_progress_bar){ .label = label,
                                .total_bytes = total_bytes,
                                .begun = weir_cli_now(),
                                .visible = terminal || forced,
                                .terminal = terminal };
}

static void draw(const weir_progress_bar *bar, double now)
{
    uint64_t done_bytes = bar->done_bytes;
    double seconds = now - bar->begun;
    double share = bar->total_bytes == 0 ? 1 : (double)done_bytes / (double)bar->total_bytes;
    if (share > 1)
        share = 1;
    double rate = seconds > 0 ? (double)done_bytes / seconds : 0;
    double left = rate > 0 ? ((double)bar->total_bytes - (double)done_bytes) / rate : -1;

    char cells[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++)
        cells[i] = i < (int)(share * BAR_CELLS) ? '#' : '.';
    cells[BAR_CELLS] = '\0';
    fprintf(stderr, "%s%s [%s] %3.0f %%  %s of %s  %s  %s left%s", bar->terminal ? "\r" : "",
            bar->label, cells, share * 100, weir_cli_bytes_text(done_bytes).text,
            weir_cli_bytes_text(bar->total_bytes).text, weir_cli_rate_text(rate).text,
            weir_cli_duration_text(left).text, bar->terminal ? "\x1b[K" : "\n");
}

void weir_progress_bar_update(weir_progress_bar *bar, uint64_t done_bytes)
{
    bar->done_bytes = done_bytes;
    if (!bar->visible)
        return;
    double now = weir_cli_now();
    if (bar->drawn != 0 && now - bar->drawn < (bar->terminal ? 0.1 : 1.0))
        return;
    bar->drawn = now;
    draw(bar, now);
}

void weir_progress_bar_end(weir_progress_bar *bar)
{
    if (bar->visible && bar->terminal && bar->drawn != 0)
        fputs("\r\x1b[K", stderr);
    else if (bar->visible && !bar->terminal)
        draw(bar, weir_cli_now());
    bar->visible = false;
}
