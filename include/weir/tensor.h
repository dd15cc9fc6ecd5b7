/* SPDX-License-Identifier: Apache-2.0 */
/* tensor.h - dtypes, shapes, boxes, views: the words every other header uses.
 *
 * Threads    plain values; no shared state.
 * Ownership  a view borrows its name and data from whoever made it.
 * Errors     functions that take outside values return weir_status; the others cannot fail.
 */
#ifndef WEIR_TENSOR_H
#define WEIR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, number, bits per element). The names are those of the safetensors format; the numbers
 * travel in manifests and are pinned. */
#define WEIR_DTYPE_LIST(X)                                                                        \
    X(BOOL, 1, 8)                                                                                 \
    X(U8, 2, 8)                                                                                   \
    X(I8, 3, 8)                                                                                   \
    X(U16, 4, 16)                                                                                 \
    X(I16, 5, 16)                                                                                 \
    X(U32, 6, 32)                                                                                 \
    X(I32, 7, 32)                                                                                 \
    X(U64, 8, 64)                                                                                 \
    X(I64, 9, 64)                                                                                 \
    X(F16, 10, 16)                                                                                \
    X(BF16, 11, 16)                                                                               \
    X(F32, 12, 32)                                                                                \
    X(F64, 13, 64)                                                                                \
    X(C64, 14, 64)                                                                                \
    X(F8_E4M3, 15, 8)                                                                             \
    X(F8_E5M2, 16, 8)                                                                             \
    X(F8_E8M0, 17, 8)                                                                             \
    X(F8_E4M3FNUZ, 18, 8)                                                                         \
    X(F8_E5M2FNUZ, 19, 8)                                                                         \
    X(F6_E2M3, 20, 6)                                                                             \
    X(F6_E3M2, 21, 6)                                                                             \
    X(F4, 22, 4)

typedef enum weir_dtype {
    WEIR_DTYPE_NONE = 0,
#define WEIR_DTYPE_ENUM(name, number, bits) WEIR_##name = (number),
    WEIR_DTYPE_LIST(WEIR_DTYPE_ENUM)
#undef WEIR_DTYPE_ENUM
    WEIR_DTYPE_END
} weir_dtype;

/* A set of dtypes: bit n stands for the dtype with number n. */
typedef uint32_t weir_dtype_set;
#define WEIR_DTYPE_BIT(dtype) ((weir_dtype_set)1u << (dtype))

/* "BF16"; "?" for a number that is no dtype. */
WEIR_API const char *weir_dtype_name(weir_dtype dtype);
/* Bits per element; 0 for a number that is no dtype. */
WEIR_API unsigned weir_dtype_bits(weir_dtype dtype);
/* The dtype of a safetensors name ("F8_E4M3"), WEIR_DTYPE_NONE if there is none. */
WEIR_API weir_dtype weir_dtype_from_name(const char *name);

#define WEIR_MAX_RANK 8

/* Row-major, (out_features, in_features) for a linear weight. rank 0 is a scalar. */
typedef struct weir_shape {
    uint32_t rank;
    uint64_t dim[WEIR_MAX_RANK];
} weir_shape;

WEIR_API bool weir_shape_equal(const weir_shape *a, const weir_shape *b);
/* Product of the dims, 1 for a scalar. ERR_INVALID if it overflows 64 bits. */
WEIR_API weir_status weir_shape_elements(const weir_shape *shape, uint64_t *out_elements);
/* Bytes of a contiguous tensor: elements * bits / 8. ERR_INVALID if that overflows or is no whole
 * number of bytes. */
WEIR_API weir_status weir_tensor_bytes(weir_dtype dtype, const weir_shape *shape,
                                       uint64_t *out_bytes);
/* Writes "[4, 320, 256]" into buffer and returns it; buffer of WEIR_SHAPE_TEXT bytes is enough. */
#define WEIR_SHAPE_TEXT 192
WEIR_API const char *weir_shape_text(const weir_shape *shape, char *buffer, size_t buffer_bytes);

/* Half-open ranges lo[d] <= i < hi[d] on every axis of a global shape. */
typedef struct weir_box {
    uint32_t rank;
    uint64_t lo[WEIR_MAX_RANK];
    uint64_t hi[WEIR_MAX_RANK];
} weir_box;

/* The whole of a shape. */
WEIR_API weir_box weir_box_whole(const weir_shape *shape);
/* False when a and b share no element (out is then untouched). */
WEIR_API bool weir_box_intersect(const weir_box *a, const weir_box *b, weir_box *out);
/* hi - lo on every axis. */
WEIR_API weir_shape weir_box_shape(const weir_box *box);

/* A contiguous tensor in host memory. data may be NULL where only the description matters. */
typedef struct weir_tensor {
    const char *name;
    weir_dtype dtype;
    weir_shape shape;
    void *data;
} weir_tensor;

/* Position-sensitive digest of a tensor's bytes.
 *
 * The bytes are seen as rows (all dims but the last flattened; one row for the whole tensor if the
 * last dim is no whole number of bytes) of row_bytes, each zero-padded to whole little-endian
 * 64-bit words w, numbered i = row * words_per_row + column. With the key
 *     k(i) = 0xD6E8FEB86659FD93 + i * 0x9E3779B97F4A7C15   (mod 2^64)
 * product = sum of lo32(lo32(w) + lo32(k)) * lo32(hi32(w) + hi32(k))   (mod 2^64)
 * sum     = sum of w                                                   (mod 2^64)
 * Sums commute, so threads and GPU blocks add their parts in any order. Damage within one word
 * always shows in `sum`; moved, swapped or stale words show in `product` (the NH universal hash).
 * It detects accidents, not forgery: the SHA-256 of the manifest covers the digests themselves. */
typedef struct weir_digest {
    uint64_t product;
    uint64_t sum;
} weir_digest;

/* Adds the digest of n_rows rows of row_bytes each, contiguous, the first being row 0.
 * *digest starts as {0, 0}. Blocks; one thread. */
WEIR_API void weir_digest_add(weir_digest *digest, const void *data, size_t n_rows,
                              size_t row_bytes);

#ifdef __cplusplus
}
#endif
#endif
