/* SPDX-License-Identifier: Apache-2.0 */
/* neg_exp_cuda.cu - neg_exp on a GPU, by the steps of the reference. What it makes has a number per
 * head: it reads element by element, and there is no kernel for anything faster. */
#include "convert/cuda/kernel_choice.cuh"
#include "convert/cuda/to_float.cuh"
#include "numeric/exponential.h"

struct as_neg_exp {
    static constexpr uint32_t n_words = 8, element_bytes = 4;
    template <class From>
    static __device__ __forceinline__ float_words<8> cast(const typename From::held &chunk)
    {
        float v[8];
        float_words<8> out;
        From::exact_values(chunk, v);
#pragma unroll 1
        for (int i = 0; i < 8; i++)
            out.w[i] = weir_float_bits(weir_neg_exp(v[i]));
        return out;
    }
    static __device__ __forceinline__ bool refuses(const float_words<8> &words)
    {
        return as_f32::refuses(words);
    }
};

extern "C" weir_cuda_kernel weir_neg_exp_cuda(weir_cuda_from)
{
    return kernel_of<from_any, to_float<as_neg_exp>>();
}
