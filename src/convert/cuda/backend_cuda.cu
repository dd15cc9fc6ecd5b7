/* SPDX-License-Identifier: Apache-2.0 */
/* backend_cuda.cu - the one symbol that libweir_cuda.so exports. */
#include "convert/cuda/kernels_cuda.h"
#include "device/cuda/runtime_cuda.h"

static const weir_cuda_converter converter = {
    sizeof(weir_cuda_converter), weir_cuda_convert, weir_cuda_finish_batch, weir_cuda_find_refused,
    weir_cuda_digest_ranges,     weir_cuda_derive,  weir_cuda_measure_rows, weir_cuda_scatter_rows,
};

extern "C" __attribute__((visibility("default"))) const weir_cuda_backend weir_cuda_backend_table;
const weir_cuda_backend weir_cuda_backend_table = {
    sizeof(weir_cuda_backend),
    WEIR_CUDA_BACKEND_VERSION,
    &weir_cuda_runtime_table,
    &converter,
};
