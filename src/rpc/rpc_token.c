/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_token.c - what is in a token's file, and when it is looked at again. */
#include "rpc/rpc_token.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"

#define NS_PER_MS 1000000ull

/* ---- the file --------------------------------------------------------------------------------*/

weir_status weir_token_check(const char *token, const char *whence)
{
    if (strlen(token) >= WEIR_TOKEN_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "%s: a token has at most %d bytes", whence,
                         WEIR_TOKEN_BYTES - 1);
    for (const char *c = token; *c != '\0'; c++) {
        if (*c <= 0x20 || *c >= 0x7f)
            return weir_fail(WEIR_ERR_INVALID,
                             "%s: a token is printable ASCII without spaces, byte %zu is 0x%02x",
                             whence, (size_t)(c - token), (unsigned char)*c);
    }
    return WEIR_OK;
}

/* Reads until the buffer is full or the file ends. */
static weir_status read_all(int fd, const char *path, char *out, size_t n_out, size_t *out_n)
{
    for (*out_n = 0; *out_n < n_out;) {
        ssize_t n = read(fd, out + *out_n, n_out - *out_n);
        if (n < 0 && errno != EINTR)
            return weir_fail_errno("cannot read the token's file %s", path);
        if (n == 0)
            return WEIR_OK;
        if (n > 0)
            *out_n += (size_t)n;
    }
    return weir_fail(WEIR_ERR_INVALID, "%s: a token has at most %d bytes", path,
                     WEIR_TOKEN_BYTES - 1);
}

weir_status weir_token_read(const char *path, char out[WEIR_TOKEN_BYTES])
{
    struct stat about;
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return weir_fail_errno("cannot open the token's file %s", path);
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && (about.st_mode & 077) != 0)
        weir_log(WEIR_LOG_WARN, "%s: others than its owner can read the token (mode %04o)", path,
                 (unsigned)about.st_mode & 07777);
    weir_status status = read_all(fd, path, out, WEIR_TOKEN_BYTES, &n);
    close(fd);
    if (status != WEIR_OK)
        return status;
    while (n > 0 && strchr("\r\n \t", out[n - 1]) != NULL)
        n--;
    out[n] = '\0';
    if (n == 0 || strlen(out) != n)
        return weir_fail(WEIR_ERR_INVALID, "%s: there is no token in it", path);
    return weir_token_check(out, path);
}

bool weir_token_is(const char *token, const void *bytes, size_t n_bytes)
{
    return strlen(token) == n_bytes && CRYPTO_memcmp(token, bytes, n_bytes) == 0;
}

/* ---- a file that is replaced -----------------------------------------------------------------*/

void weir_token_watch_init(weir_token_watch *watch, const char *token)
{
    *watch = (weir_token_watch){ .looked_ns = weir_now_ns() };
    strncpy(watch->now, token, sizeof(watch->now) - 1);
}

/* When the file was replaced, as late as it can have been: who has not looked for an hour gives the
 * token before no grace from now on. */
static uint64_t replaced_ns(const weir_token_watch *watch, const weir_file_stamp *stamp)
{
    uint64_t now_ns = weir_now_ns();
    uint64_t unix_ns = weir_unix_ms() * NS_PER_MS;
    uint64_t changed_ns = stamp->changed_ns > 0 ? (uint64_t)stamp->changed_ns : 0;
    uint64_t age_ns = unix_ns > changed_ns ? unix_ns - changed_ns : 0;
    uint64_t since_ns = now_ns > age_ns ? now_ns - age_ns : 0;
    return since_ns > watch->looked_ns ? since_ns : watch->looked_ns;
}

static void replace(weir_token_watch *watch, const char *token, const weir_file_stamp *stamp)
{
    memcpy(watch->before, watch->now, sizeof(watch->before));
    memset(watch->now, 0, sizeof(watch->now));
    memcpy(watch->now, token, strlen(token));
    watch->before_until = replaced_ns(watch, stamp) + WEIR_TOKEN_GRACE_MS * NS_PER_MS;
}

static bool read_again(weir_token_watch *watch, const char *path, const weir_file_stamp *stamp)
{
    char token[WEIR_TOKEN_BYTES];
    bool is_other = false;
    watch->is_bad = weir_token_read(path, token) != WEIR_OK;
    if (!watch->is_bad) {
        is_other = strcmp(token, watch->now) != 0;
        if (is_other)
            replace(watch, token, stamp);
    } else if (!watch->is_warned) {
        weir_log(WEIR_LOG_WARN, "the token that was read before stays in force: %s",
                 weir_last_error());
    }
    watch->is_warned = watch->is_bad;
    OPENSSL_cleanse(token, sizeof(token));
    if (is_other)
        weir_log(WEIR_LOG_INFO, "%s: there is another token in it; the one before is good for %u s",
                 path, WEIR_TOKEN_GRACE_MS / 1000);
    return is_other;
}

bool weir_token_watch_look(weir_token_watch *watch, const char *path, bool at_once)
{
    weir_file_stamp stamp;
    bool is_due = watch->next_look == 0 || weir_deadline_passed(watch->next_look);
    if (!at_once && !is_due)
        return false;
    watch->next_look = weir_deadline_in(WEIR_TOKEN_LOOK_AGAIN_MS);
    if (!weir_file_stamp_take(path, &stamp)) /* between removed and written */
        return false;
    bool is_same = memcmp(&stamp, &watch->stamp, sizeof(stamp)) == 0;
    watch->stamp = stamp;
    bool is_other = (!is_same || (watch->is_bad && is_due)) && read_again(watch, path, &stamp);
    if (!watch->is_bad)
        watch->looked_ns = weir_now_ns();
    return is_other;
}

const char *weir_token_watch_before(const weir_token_watch *watch)
{
    bool is_good = watch->before_until != 0 && !weir_deadline_passed(watch->before_until);
    return is_good ? watch->before : NULL;
}
