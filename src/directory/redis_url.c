/* SPDX-License-Identifier: Apache-2.0 */
/* redis_url.c - cuts a URL from the right: a password may hold any character but '/'. */
#include "directory/redis_url.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

static weir_status bad(const char *what)
{
    return weir_fail(WEIR_ERR_INVALID,
                     "redis URL: %s; expected redis://[USER:PASSWORD@]HOST:PORT[/DB]", what);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* False when it is too long or a % stands before anything but two hexadecimal digits, not zero. */
static bool decode(const char *text, size_t n, char *out, size_t n_out)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (c == '%') {
            int high = i + 2 < n ? hex_digit(text[i + 1]) : -1;
            int low = i + 2 < n ? hex_digit(text[i + 2]) : -1;
            if (high < 0 || low < 0 || high + low == 0)
                return false;
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (at + 1 >= n_out)
            return false;
        out[at++] = c;
    }
    out[at] = '\0';
    return true;
}

static bool read_number(const char *text, size_t n, unsigned highest, unsigned *out)
{
    unsigned number = 0;
    if (n == 0 || n > 5)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        number = number * 10 + (unsigned)(text[i] - '0');
    }
    *out = number;
    return number <= highest;
}

static weir_status read_user(const char *text, size_t n, weir_redis_url *out)
{
    const char *colon = memchr(text, ':', n);
    if (colon == NULL)
        return bad("there is no ':' between user and password");
    size_t n_user = (size_t)(colon - text);
    if (!decode(text, n_user, out->user, sizeof(out->user)))
        return bad("the user is too long or has a bad %XX");
    if (!decode(colon + 1, n - n_user - 1, out->password, sizeof(out->password)))
        return bad("the password is too long or has a bad %XX");
    if (out->password[0] == '\0')
        return bad("the password is empty");
    return WEIR_OK;
}

static weir_status read_host(const char *text, size_t n, weir_redis_url *out)
{
    const char *colon = memrchr(text, ':', n);
    if (colon != NULL && n > 0 && text[n - 1] == ']')
        colon = NULL; /* that one is within an IPv6 address */
    size_t n_host = colon != NULL ? (size_t)(colon - text) : n;
    out->port = 6379;
    if (colon != NULL &&
        (!read_number(colon + 1, n - n_host - 1, 65535, &out->port) || out->port == 0))
        return bad("the port is not a number from 1 to 65535");
    bool is_v6 = n_host >= 2 && text[0] == '[' && text[n_host - 1] == ']';
    if (is_v6) {
        text++;
        n_host -= 2;
    } else if (memchr(text, ':', n_host) != NULL) {
        return bad("the host needs brackets, [HOST]:PORT");
    }
    if (n_host == 0 || n_host >= sizeof(out->host))
        return bad("the host is missing or too long");
    memcpy(out->host, text, n_host);
    snprintf(out->who, sizeof(out->who), is_v6 ? "redis [%s]:%u" : "redis %s:%u", out->host,
             out->port);
    weir_error_one_line(out->who);
    return WEIR_OK;
}

weir_status weir_redis_url_parse(const char *text, weir_redis_url *out)
{
    static const char scheme[] = "redis://";
    memset(out, 0, sizeof(*out));
    if (text == NULL || strncmp(text, scheme, sizeof(scheme) - 1) != 0)
        return bad("it does not begin with redis://");
    text += sizeof(scheme) - 1;
    size_t n = strcspn(text, "/");
    if (text[n] == '/' && text[n + 1] != '\0' &&
        !read_number(text + n + 1, strlen(text + n + 1), 65535, &out->database))
        return bad("the database is not a number from 0 to 65535");
    const char *at = memrchr(text, '@', n);
    weir_status status = WEIR_OK;
    if (at != NULL) {
        status = read_user(text, (size_t)(at - text), out);
        n -= (size_t)(at + 1 - text);
        text = at + 1;
    }
    return status == WEIR_OK ? read_host(text, n, out) : status;
}

void weir_redis_url_close(weir_redis_url *url)
{
    explicit_bzero(url, sizeof(*url));
}
