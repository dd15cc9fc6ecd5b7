/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_top.c - `weir top`: a directory's fleet on a terminal, drawn anew as it changes.
 *
 * Asks what the page of `weir serve` asks. A directory that is not Weir's cannot tell as much: of
 * it the sources of one model are shown (top_fallback.c). How it looks is top_frame.c's. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "top.h"
#include "weir/fleet.h"

const char weir_usage_top[] =
    "usage: weir top [--directory HOST:PORT] [--model NAME] [--once] [--json]\n"
    "                [--tls-ca FILE ...]\n"
    "\n"
    "Shows what a directory knows: trainer ranks and replicas and which version each holds, "
    "refits\n"
    "in flight with rate and time left, the last refits stop by stop, refusals. Ends on q or "
    "Ctrl-C.\n"
    "\n"
    "  --directory HOST:PORT  default: 127.0.0.1:8500; several of one fleet: HOST:PORT,HOST:PORT\n"
    "  --model NAME           of this model alone; required with a ModelExpress server\n"
    "  --once                 print one frame and end\n"
    "  --json                 print what the directory says, as JSON, and "
    "end\n" WEIR_CLI_SECURITY_USAGE;

enum { OPTION_DIRECTORY = 256, OPTION_MODEL, OPTION_ONCE, OPTION_JSON };

static const struct option options[] = { { "directory", required_argument, NULL, OPTION_DIRECTORY },
                                         { "model", required_argument, NULL, OPTION_MODEL },
                                         { "once", no_argument, NULL, OPTION_ONCE },
                                         { "json", no_argument, NULL, OPTION_JSON },
                                         WEIR_CLI_SECURITY_OPTIONS,
                                         WEIR_CLI_OPTIONS_END };

#define CALL_MS 10000u
#define POLL_MS 1000 /* of a server that cannot say when something changes */
#define RATE_MS 1300 /* a worker says once a second how far it has come */
#define TURN_MS 500u

typedef struct top_job {
    const char *directory, *model;
    bool once, as_json;
    bool is_plain; /* ModelExpress: no GetFleet */
} top_job;

/* ---- asking ----------------------------------------------------------------------------------*/

/* NULL after the library has recorded why. */
static json_t *ask(top_job *job, uint64_t after_revision)
{
    weir_fleet_wish wish = WEIR_FLEET_WISH_INIT;
    char *text = NULL;
    wish.directory = job->directory;
    wish.model = job->model;
    wish.after_revision = after_revision;
    wish.timeout_ms = after_revision != 0 ? TURN_MS : CALL_MS;
    weir_status status = WEIR_ERR_UNSUPPORTED;
    if (!job->is_plain)
        status = weir_fleet_get(&wish, &text);
    if (status == WEIR_ERR_UNSUPPORTED && job->model != NULL) {
        job->is_plain = true;
        return weir_top_discover(job->directory, job->model, CALL_MS);
    }
    if (status != WEIR_OK)
        return NULL;
    json_t *fleet = weir_cli_json_of(text);
    weir_string_free(text);
    return fleet;
}

/* ---- the terminal ----------------------------------------------------------------------------*/

static struct termios saved_mode;
static bool is_raw;

static void leave_terminal(void)
{
    static const char restore[] = "\x1b[?25h\x1b[?1049l";
    ssize_t n = write(STDOUT_FILENO, restore, sizeof(restore) - 1);
    (void)n;
    if (is_raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &saved_mode);
}

static void enter_terminal(void)
{
    struct termios mode;
    is_raw = tcgetattr(STDIN_FILENO, &saved_mode) == 0;
    if (is_raw) {
        mode = saved_mode;
        mode.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSANOW, &mode);
    }
    fputs("\x1b[?1049h\x1b[?25l\x1b[2J", stdout);
}

static void measure(weir_top_frame *frame)
{
    struct winsize size;
    bool is_known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col != 0;
    frame->n_columns = is_known ? size.ws_col : 100;
    frame->n_rows = is_known ? size.ws_row : 0;
}

/* Waits a moment for a key. True: it was q. */
static bool is_quit(int wait_ms)
{
    struct pollfd keys = { .fd = STDIN_FILENO, .events = POLLIN };
    char key;
    if (!is_raw) {
        usleep((useconds_t)wait_ms * 1000);
        return false;
    }
    return poll(&keys, 1, wait_ms) == 1 && read(STDIN_FILENO, &key, 1) == 1 &&
           (key == 'q' || key == 'Q');
}

static void watch(top_job *job, weir_top_frame *frame)
{
    uint64_t revision = 0;
    enter_terminal();
    weir_cli_on_stop(leave_terminal);
    while (!weir_cli_stopped()) {
        json_t *fleet = ask(job, revision);
        measure(frame);
        frame->trouble = fleet == NULL ? weir_last_error() : NULL;
        if (fleet != NULL) {
            revision = (uint64_t)json_integer_value(json_object_get(fleet, "revision"));
            weir_top_take(frame, fleet);
        } else {
            revision = 0;
        }
        fputs("\x1b[H", stdout);
        weir_top_draw(frame);
        fputs("\x1b[J", stdout);
        fflush(stdout);
        if (is_quit(job->is_plain || fleet == NULL ? POLL_MS : 100))
            break;
    }
    weir_cli_on_stop(NULL);
    leave_terminal();
}

/* ---- the verb --------------------------------------------------------------------------------*/

static int show_once(top_job *job, weir_top_frame *frame)
{
    json_t *fleet = ask(job, 0);
    if (fleet == NULL)
        return weir_cli_fail();
    if (job->as_json)
        return weir_cli_print_json(fleet);
    measure(frame);
    frame->n_rows = 0; /* all of it */
    const bool is_moving = json_array_size(json_object_get(fleet, "in_flight")) > 0;
    weir_top_take(frame, fleet);
    if (is_moving) { /* how fast is seen by a second look, once workers have spoken again */
        poll(NULL, 0, RATE_MS);
        fleet = ask(job, 0);
        if (fleet == NULL)
            return weir_cli_fail();
        weir_top_take(frame, fleet);
    }
    weir_top_draw(frame);
    return WEIR_EXIT_OK;
}

int weir_cmd_top(int argc, char **argv)
{
    top_job job = { .directory = "127.0.0.1:8500" };
    weir_top_frame frame = { .is_plain_text = isatty(STDOUT_FILENO) == 0 };
    for (int option; (option = weir_cli_option(argc, argv, "", options)) != -1;) {
        if (option == WEIR_CLI_BAD_OPTION)
            return WEIR_EXIT_USAGE;
        if (option == OPTION_DIRECTORY)
            job.directory = optarg;
        else if (option == OPTION_MODEL)
            job.model = optarg;
        else if (option == OPTION_ONCE)
            job.once = true;
        else
            job.as_json = true;
    }
    if (optind < argc)
        return weir_cli_usage_error("top", "'%s' is not wanted", argv[optind]);
    frame.directory = job.directory;
    weir_cli_catch_signals();
    int code = WEIR_EXIT_OK;
    if (job.once || job.as_json || frame.is_plain_text)
        code = show_once(&job, &frame);
    else
        watch(&job, &frame);
    json_decref(frame.fleet);
    return code;
}
