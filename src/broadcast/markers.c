/* SPDX-License-Identifier: Apache-2.0 */
/* markers.c - a marker is there or it is not: it is made by one system call, and has no content. */
#include "broadcast/markers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "weir/orchestrate.h"

#define FIRST_LOOK_MS 5u
#define MOST_LOOK_MS 100u
#define STEP_PREFIX "step_"
#define MOST_DIGITS 18u

static weir_status path_of(const char *marker_dir, uint64_t version, const char *name,
                           char out[PATH_MAX])
{
    int n = snprintf(out, PATH_MAX, "%s/" STEP_PREFIX "%" PRIu64 "%s%s", marker_dir, version,
                     name[0] != '\0' ? "/" : "", name);
    return n > 0 && n < PATH_MAX
               ? WEIR_OK
               : weir_fail(WEIR_ERR_INVALID, "marker directory '%.60s...' is too long", marker_dir);
}

/* As mkdir -p. */
static weir_status make_directories(char *path)
{
    for (char *at = path + 1;; at++) {
        if (*at != '/' && *at != '\0')
            continue;
        char was = *at;
        *at = '\0';
        bool is_there = mkdir(path, 0777) == 0 || errno == EEXIST;
        if (!is_there)
            return weir_fail_errno("cannot make directory %s", path);
        *at = was;
        if (was == '\0')
            return WEIR_OK;
    }
}

weir_status weir_marker_touch(const char *marker_dir, uint64_t version, const char *name,
                              bool makes)
{
    char path[PATH_MAX];
    weir_status status = path_of(marker_dir, version, "", path);
    if (status == WEIR_OK && makes)
        status = make_directories(path);
    if (status == WEIR_OK)
        status = path_of(marker_dir, version, name, path);
    if (status != WEIR_OK)
        return status;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return weir_fail_errno("cannot touch %s", path);
    close(fd);
    return WEIR_OK;
}

static bool exists(const char *path)
{
    struct stat stat_of;
    return stat(path, &stat_of) == 0;
}

weir_status weir_marker_await(const char *marker_dir, uint64_t version, const char *name,
                              unsigned timeout_ms, const atomic_bool *cancelled)
{
    char path[PATH_MAX], step[PATH_MAX];
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    weir_status status = path_of(marker_dir, version, name, path);
    if (status == WEIR_OK)
        status = path_of(marker_dir, version, "", step);
    for (unsigned look_ms = FIRST_LOOK_MS; status == WEIR_OK; look_ms *= 2) {
        if (exists(path))
            return WEIR_OK;
        if (!exists(step))
            return weir_fail(WEIR_ERR_NOT_FOUND, "%s was deleted before it had the marker %s", step,
                             name);
        if (cancelled != NULL && atomic_load(cancelled))
            return weir_fail(WEIR_ERR_CANCELLED, "waiting for %s was cancelled", path);
        unsigned left_ms = weir_deadline_left_ms(deadline);
        if (left_ms == 0)
            return weir_fail(WEIR_ERR_TIMED_OUT, "nobody has touched %s within %.1f s", path,
                             timeout_ms / 1e3);
        look_ms = look_ms < MOST_LOOK_MS ? look_ms : MOST_LOOK_MS;
        weir_sleep_ms(look_ms < left_ms ? look_ms : left_ms);
    }
    return status;
}

/* ---- the newest ------------------------------------------------------------------------------*/

/* "step_12" alone: no sign, no leading zero. */
static bool read_step(const char *name, uint64_t *out)
{
    const char *digits = name + strlen(STEP_PREFIX);
    if (strncmp(name, STEP_PREFIX, strlen(STEP_PREFIX)) != 0)
        return false;
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > MOST_DIGITS || digits[n] != '\0' || (digits[0] == '0' && n > 1))
        return false;
    *out = 0;
    for (; *digits != '\0'; digits++)
        *out = *out * 10 + (uint64_t)(*digits - '0');
    return true;
}

static bool is_stable(const char *marker_dir, uint64_t version)
{
    char path[PATH_MAX];
    return path_of(marker_dir, version, WEIR_MARKER_STABLE, path) == WEIR_OK && exists(path);
}

weir_status weir_marker_newest(const char *marker_dir, bool has_last, uint64_t last, uint64_t most,
                               uint64_t *out)
{
    bool found = false;
    uint64_t newest = last, version;
    DIR *steps = opendir(marker_dir);
    if (steps == NULL)
        return weir_fail_errno("cannot read marker directory %s", marker_dir);
    for (const struct dirent *entry; (entry = readdir(steps)) != NULL;) {
        if (!read_step(entry->d_name, &version) || version > most ||
            ((found || has_last) && version <= newest) || !is_stable(marker_dir, version))
            continue;
        found = true;
        newest = version;
    }
    closedir(steps);
    if (!found)
        return weir_fail(WEIR_ERR_NOT_FOUND, "%s has no newer step with the marker %s", marker_dir,
                         WEIR_MARKER_STABLE);
    *out = newest;
    return WEIR_OK;
}

/* ---- of a trainer ----------------------------------------------------------------------------*/

static weir_status take_away(const char *marker_dir, uint64_t version, const char *name)
{
    char path[PATH_MAX];
    weir_status status = path_of(marker_dir, version, name, path);
    if (status == WEIR_OK && unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR)
        status = weir_fail_errno("cannot remove %s", path);
    return status;
}

/* An answer that is there before the question is an earlier run's. */
weir_status weir_markers_set_stable(const char *marker_dir, uint64_t version)
{
    if (marker_dir == NULL || marker_dir[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "weir_markers_set_stable: no marker_dir");
    weir_status status = take_away(marker_dir, version, WEIR_MARKER_READY);
    return status == WEIR_OK ? weir_marker_touch(marker_dir, version, WEIR_MARKER_STABLE, true)
                             : status;
}

weir_status weir_markers_clear(const char *marker_dir, uint64_t first_version)
{
    weir_status status = WEIR_OK;
    uint64_t version;
    if (marker_dir == NULL || marker_dir[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "weir_markers_clear: no marker_dir");
    DIR *steps = opendir(marker_dir);
    if (steps == NULL)
        return errno == ENOENT ? WEIR_OK
                               : weir_fail_errno("cannot read marker directory %s", marker_dir);
    for (const struct dirent *entry; status == WEIR_OK && (entry = readdir(steps)) != NULL;) {
        if (!read_step(entry->d_name, &version) || version < first_version)
            continue;
        status = take_away(marker_dir, version, WEIR_MARKER_STABLE);
        if (status == WEIR_OK)
            status = take_away(marker_dir, version, WEIR_MARKER_READY);
    }
    closedir(steps);
    return status;
}

weir_status weir_markers_await_ready(const char *marker_dir, uint64_t version, unsigned timeout_ms)
{
    if (marker_dir == NULL || marker_dir[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "weir_markers_await_ready: no marker_dir");
    return weir_marker_await(marker_dir, version, WEIR_MARKER_READY, timeout_ms, NULL);
}
