/* SPDX-License-Identifier: Apache-2.0 */
/* digest_cuda.cu - digests of ranges that are already there: memory is read once, sixteen bytes a
 * load, a slice for each thread block. */
#include "convert/cuda/digest_sum.cuh"
#include "convert/cuda/kernel_start.cuh"
#include "convert/cuda/kernels_cuda.h"

#define SLICE_PAIRS (WEIR_CUDA_SLICE_WORDS / 2)
#define BLOCKS_PER_SM 4

/* The largest magnitudes seen, two halves or one word. */
template <int CHECK> __device__ __forceinline__ uint32_t larger(uint32_t peak, uint32_t bits)
{
    if (CHECK == WEIR_CUDA_CHECK_HALVES)
        return __vmaxu2(peak, bits & 0x7FFF7FFFu);
    return CHECK == WEIR_CUDA_CHECK_WORDS ? max(peak, bits & 0x7FFFFFFFu) : 0;
}

/* What a thread gathers. */
template <int CHECK> struct slice_sum {
    digest_sum digest;
    uint32_t peak;

    __device__ __forceinline__ void add(uint32_t low, uint32_t high, uint64_t key)
    {
        digest.add(low, high, key);
        peak = larger<CHECK>(larger<CHECK>(peak, low), high);
    }
    __device__ __forceinline__ bool refuses(uint32_t least) const
    {
        if (CHECK == WEIR_CUDA_CHECK_HALVES)
            return max(peak & 0xFFFFu, peak >> 16) >= least;
        return CHECK == WEIR_CUDA_CHECK_WORDS && peak >= least;
    }
};

/* Pairs of words that all lie inside the range. */
template <int CHECK>
__device__ __forceinline__ void add_pairs(const char *pairs, uint64_t key, slice_sum<CHECK> *sum)
{
    const uint64_t key_step = 2 * WEIR_CUDA_THREADS * WEIR_DIGEST_STEP;
    pairs += threadIdx.x * 16;
#pragma unroll 1
    for (uint32_t turn = 0; turn < WEIR_CUDA_SLICE_TURNS; turn++) {
        uint4 v[WEIR_CUDA_SLICE_LOADS];
#pragma unroll
        for (uint32_t i = 0; i < WEIR_CUDA_SLICE_LOADS; i++, pairs += WEIR_CUDA_THREADS * 16)
            v[i] = load_16(pairs, true);
#pragma unroll
        for (uint32_t i = 0; i < WEIR_CUDA_SLICE_LOADS; i++, key += key_step) {
            sum->add(v[i].x, v[i].y, key);
            sum->add(v[i].z, v[i].w, key + WEIR_DIGEST_STEP);
        }
    }
}

/* Words [first, end), one by one. */
template <int CHECK>
__device__ __forceinline__ void add_words(const weir_cuda_digest_job &job, uint64_t first,
                                          uint64_t end, slice_sum<CHECK> *sum)
{
    const uint2 *words = reinterpret_cast<const uint2 *>(job.data);
#pragma unroll 4
    for (uint64_t w = first + threadIdx.x; w < end; w += WEIR_CUDA_THREADS) {
        uint2 word = __ldg(&words[w]);
        sum->add(word.x, word.y, digest_key(job.first_word + w));
    }
}

__device__ __forceinline__ uint64_t word_of_bytes(uint64_t address, uint32_t n)
{
    uint64_t word = 0;
    for (uint32_t i = 0; i < n; i++)
        word |= static_cast<uint64_t>(reinterpret_cast<const uint8_t *>(address)[i]) << 8 * i;
    return word;
}

template <int CHECK>
__device__ __forceinline__ void add_ragged(const weir_cuda_digest_job &job, uint64_t first,
                                           uint64_t end, slice_sum<CHECK> *sum)
{
    for (uint64_t w = first + threadIdx.x; w < end; w += WEIR_CUDA_THREADS) {
        uint64_t row = w / job.words_per_row, at = (w - row * job.words_per_row) * 8;
        uint64_t word =
            word_of_bytes(job.data + row * job.row_bytes + at,
                          static_cast<uint32_t>(min(job.row_bytes - at, uint64_t{ 8 })));
        sum->add(static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32),
                 digest_key(job.first_word + w));
    }
}

/* The bytes behind the last whole word; one thread's. */
template <int CHECK>
__device__ __forceinline__ void add_tail(const weir_cuda_digest_job &job, slice_sum<CHECK> *sum)
{
    uint64_t word = word_of_bytes(job.data + job.n_words * 8, job.n_tail_bytes);
    sum->add(static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32),
             digest_key(job.first_word + job.n_words));
}

/* Pairs count from the first address that is a multiple of 16, so the first may begin outside. */
template <int CHECK>
__device__ __forceinline__ void digest_slice(const weir_cuda_digest_launch &launch, uint32_t index,
                                             uint32_t slice)
{
    const weir_cuda_digest_job &job = launch.jobs[index];
    slice_sum<CHECK> sum = { { 0, 0 }, 0 };
    const uint32_t outside = job.ragged ? 0 : job.data / 8 % 2;
    const uint64_t from = static_cast<uint64_t>(slice) * WEIR_CUDA_SLICE_WORDS;
    const uint64_t first = slice == 0 ? 0 : from - outside, to = from + WEIR_CUDA_SLICE_WORDS;
    const uint64_t end = min(to - outside, job.n_words);
    if (job.ragged) {
        add_ragged(job, first, end, &sum);
    } else if (from - outside == first && to - outside == end) {
        add_pairs(reinterpret_cast<const char *>(job.data + first * 8),
                  digest_key(job.first_word + first + 2 * threadIdx.x), &sum);
    } else {
        add_words(job, first, end, &sum);
    }
    if (threadIdx.x == 0 && job.n_tail_bytes != 0 && job.n_words >= first &&
        job.n_words < to - outside)
        add_tail(job, &sum);
    if (sum.refuses(job.least_refused))
        launch.results[index].nonfinite = 1;
    block_add(sum.digest, &launch.results[index].product, &launch.results[index].sum);
}

static __device__ void hand_over(const weir_cuda_digest_launch &launch)
{
    const uint32_t n_longs = sizeof(weir_cuda_result) / sizeof(unsigned long long);
    unsigned long long *from = reinterpret_cast<unsigned long long *>(launch.results);
    unsigned long long *to = reinterpret_cast<unsigned long long *>(launch.out);
    for (uint32_t i = threadIdx.x; i < launch.n_jobs * n_longs; i += WEIR_CUDA_THREADS) {
        to[i] = __ldcg(&from[i]); /* other blocks added to it: past this one's cache */
        from[i] = 0;
    }
    if (threadIdx.x == 0)
        *launch.n_done = 0;
}

static __global__ void __launch_bounds__(WEIR_CUDA_THREADS, BLOCKS_PER_SM)
    digest_ranges(const __grid_constant__ weir_cuda_digest_launch launch)
{
    __shared__ bool last;
    const uint32_t index = find_job(launch.first_slices, launch.n_jobs, blockIdx.x);
    const uint32_t slice = blockIdx.x - __ldg(&launch.first_slices[index]);
    await_previous(); /* until here only the image was read, which no kernel writes */
    switch (launch.jobs[index].check) {
    case WEIR_CUDA_CHECK_NONE:
        digest_slice<WEIR_CUDA_CHECK_NONE>(launch, index, slice);
        break;
    case WEIR_CUDA_CHECK_HALVES:
        digest_slice<WEIR_CUDA_CHECK_HALVES>(launch, index, slice);
        break;
    default:
        digest_slice<WEIR_CUDA_CHECK_WORDS>(launch, index, slice);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicAdd(launch.n_done, 1) + 1 == gridDim.x;
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    hand_over(launch);
}

extern "C" int weir_cuda_digest_ranges(const weir_cuda_digest_launch *launch, void *stream)
{
    return start_kernel(digest_ranges, launch->n_slices, WEIR_CUDA_THREADS, *launch, stream);
}
