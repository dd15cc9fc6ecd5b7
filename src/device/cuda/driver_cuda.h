/* SPDX-License-Identifier: Apache-2.0 */
/* driver_cuda.h - calls that the driver alone has, looked up through the runtime, so that nothing
 * links libcuda and the library loads where there is no driver. Its errors have the runtime's
 * numbers. C++, for .cu files.
 */
#ifndef WEIR_DEVICE_DRIVER_CUDA_H
#define WEIR_DEVICE_DRIVER_CUDA_H

#include <cuda.h>
#include <cuda_runtime.h>

/* Looks a driver's call up once; nullptr where it has none. Two threads may both do it: they find
 * the same. */
static inline void *driver_call(const char *name, void **found)
{
    void *entry = __atomic_load_n(found, __ATOMIC_ACQUIRE);
    cudaDriverEntryPointQueryResult result;
    if (entry != nullptr)
        return entry;
    if (cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &result) !=
        cudaSuccess) {
        cudaGetLastError();
        return nullptr;
    }
    __atomic_store_n(found, entry, __ATOMIC_RELEASE);
    return entry;
}

/* Calls NAME of the driver; the header's own declaration gives its type. */
#define DRIVER(name, ...)                                                        \
    ([&]() -> int {                                                              \
        static void *found;                                                      \
        void *entry = driver_call(#name, &found);                                \
        return entry == nullptr                                                  \
                   ? static_cast<int>(cudaErrorNotSupported)                     \
                   : static_cast<int>(reinterpret_cast<decltype(&name)>(entry)(__VA_ARGS__)); \
    }())

#endif
