/* SPDX-License-Identifier: Apache-2.0 */
/* kernel_start.cuh - starts a kernel so that its blocks are in place before the one ahead of it in
 * the stream has ended, which hides most of what lies between two launches.
 *
 * Every kernel started here calls await_previous() in all threads before it touches memory that a
 * kernel before it in the stream wrote; copies have ended before any kernel behind them starts.
 * That includes what the kernel before the last wrote, as that one has waited, too.
 */
#ifndef WEIR_CONVERT_KERNEL_START_CUH
#define WEIR_CONVERT_KERNEL_START_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#define OVERLAP_ARCHITECTURE 90 /* the first that has it */

/* Waits until what comes before in the stream has ended, and lets what comes behind get ready. */
__device__ __forceinline__ void await_previous()
{
#if __CUDA_ARCH__ >= OVERLAP_ARCHITECTURE * 10
    asm volatile("griddepcontrol.wait; griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* An error that is not sticky stays behind in the runtime and would be taken for that of a later
 * call: take it out. */
static inline int taken(cudaError_t error)
{
    if (error != cudaSuccess)
        cudaGetLastError();
    return error;
}

/* Code for an older architecture does not wait, whatever it runs on. */
static inline bool may_overlap(const void *kernel)
{
    cudaFuncAttributes attributes;
    return taken(cudaFuncGetAttributes(&attributes, kernel)) == cudaSuccess &&
           attributes.ptxVersion >= OVERLAP_ARCHITECTURE;
}

template <class Job>
static int start_kernel(void (*kernel)(Job), dim3 n_blocks, uint32_t n_threads, const Job &job,
                        void *stream, uint32_t shared_bytes = 0)
{
    if (shared_bytes != 0) {
        cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(shared_bytes));
        if (error != cudaSuccess)
            return taken(error);
    }
    cudaLaunchAttribute overlap;
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = n_blocks;
    config.blockDim = n_threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &overlap;
    config.numAttrs = may_overlap(reinterpret_cast<const void *>(kernel)) ? 1 : 0;
    return taken(cudaLaunchKernelEx(&config, kernel, job));
}

#endif
