/* SPDX-License-Identifier: Apache-2.0 */
/* status.h - what every call of Weir returns, and the one line that says why it failed.
 *
 * Threads    weir_last_error() is per thread; everything else here is constant.
 * Ownership  all strings are Weir's; the last error stays valid until the next failing call
 *            on the same thread.
 * Errors     grouped by what the caller must throw away: the call, the peer, the version or the
 *            context. The numbers are pinned: they never change and are never reused.
 */
#ifndef WEIR_STATUS_H
#define WEIR_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define WEIR_API __attribute__((visibility("default")))
#else
#define WEIR_API
#endif

/* Begins an options struct whose other fields are zero: what every …_INIT macro expands to. */
#ifdef __cplusplus
#define WEIR_SIZED(type) { sizeof(type) }
#else
#define WEIR_SIZED(type) { .size = sizeof(type) }
#endif

#define WEIR_STATUS_LIST(X)                                                                       \
    X(IN_PROGRESS, 1, "still in progress: call test again")                                       \
    X(OK, 0, "ok")                                                                                \
    /* -1..-19: this call was refused; everything else is still good */                           \
    X(ERR_INVALID, -1, "invalid argument")                                                        \
    X(ERR_UNSUPPORTED, -2, "not supported by this build, device or peer")                         \
    X(ERR_NONFINITE, -3, "a weight is NaN or infinite")                                           \
    X(ERR_NOT_FOUND, -4, "no such thing")                                                         \
    X(ERR_EXISTS, -5, "already there")                                                            \
    X(ERR_NO_MEMORY, -6, "out of memory")                                                         \
    X(ERR_IO, -7, "file or socket failed")                                                        \
    X(ERR_FORMAT, -8, "bytes are not of the format they claim")                                   \
    X(ERR_BUSY, -9, "in use: try again later")                                                    \
    X(ERR_REFUSED, -10, "the other side refused")                                                 \
    /* -20..-39: this peer or transfer is dead; reconnect */                                      \
    X(ERR_PEER_LOST, -20, "peer went away")                                                       \
    X(ERR_TIMED_OUT, -21, "timed out")                                                            \
    X(ERR_CANCELLED, -22, "cancelled")                                                            \
    /* -40..-59: this version must not be served; discover another */                             \
    X(ERR_CORRUPT, -40, "bytes do not decode or a digest differs")                                \
    X(ERR_LAYOUT, -41, "layout differs from what was published")                                  \
    X(ERR_PARTIAL, -42, "install stopped half way: unusable until reloaded")                      \
    X(ERR_ABORTED, -43, "the version was aborted")                                                \
    /* -60..-79: close the context */                                                             \
    X(ERR_DEVICE, -60, "device failed")                                                           \
    X(ERR_INTERNAL, -61, "a bug in Weir: please report it")

typedef enum weir_status {
#define WEIR_STATUS_ENUM(name, number, text) WEIR_##name = (number),
    WEIR_STATUS_LIST(WEIR_STATUS_ENUM)
#undef WEIR_STATUS_ENUM
    WEIR_STATUS_MIN = -79
} weir_status;

/* The fixed text of a status, "unknown status" for a number that is not in the list. */
WEIR_API const char *weir_status_text(weir_status status);

/* The status's name, "ERR_TIMED_OUT" say. */
WEIR_API const char *weir_status_name(weir_status status);

/* One line on the last failure of this thread: what, which tensor or peer, expected, got.
 * Never NULL; "" when nothing has failed. */
WEIR_API const char *weir_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
