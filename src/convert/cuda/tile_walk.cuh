/* SPDX-License-Identifier: Apache-2.0 */
/* tile_walk.cuh - the walk that all kernels share: blocks that stay and take tile after tile.
 *
 * A tile is read once, held in registers, and written once: 256 threads hold 64 elements each.
 * Meanwhile one more warp finds the next tile, and the memory is kept busy with it: either it is
 * fetched into shared memory, or at least into the second-level cache. Digests stay in registers
 * until the job changes.
 */
#ifndef WEIR_CONVERT_TILE_WALK_CUH
#define WEIR_CONVERT_TILE_WALK_CUH

#include "convert/cuda/digest_sum.cuh"
#include "convert/cuda/kernel_start.cuh"

/* A thread's chunks: chunk i lies at row + i * row_step, column + i * column_step. A block of 128
 * columns has 16 threads per row, chunk i 16 rows below the one before; elsewhere 2^log_lanes
 * threads share a row, chunk i one turn to the right. */
template <bool BLOCK> struct thread_chunks {
    uint32_t row, column, row_step, column_step;
    uint32_t limit; /* of what changes from chunk to chunk: the tile's rows or columns, or 0 */
    uint32_t n_cols, all_cols;

    __device__ __forceinline__ explicit thread_chunks(const tile_place &place)
    {
        const uint32_t log_lanes = BLOCK ? 4 : place.log_lanes;
        row = threadIdx.x >> log_lanes;
        column = (threadIdx.x & ((1u << log_lanes) - 1)) * 8;
        row_step = BLOCK ? WEIR_CUDA_THREADS / 16 : 0;
        column_step = BLOCK ? 0 : 8u << log_lanes;
        n_cols = place.n_cols;
        all_cols = place.all_cols;
        if (BLOCK)
            limit = column < n_cols ? place.n_rows : 0;
        else
            limit = row < place.n_rows ? n_cols : 0;
    }
    __device__ __forceinline__ uint32_t row_of(int i) const
    {
        return row + i * row_step;
    }
    __device__ __forceinline__ uint32_t column_of(int i) const
    {
        return column + i * column_step;
    }
    __device__ __forceinline__ bool has(int i) const
    {
        return (BLOCK ? row_of(i) : column_of(i)) < limit;
    }
    /* Elements of chunk i; 8 or 0 where rows move in vectors. */
    __device__ __forceinline__ uint32_t n_of(int i) const
    {
        return has(i) ? min(8u, n_cols - column_of(i)) : 0;
    }
    /* In elements of the output, from the tile's first. */
    __device__ __forceinline__ uint64_t offset(int i) const
    {
        return static_cast<uint64_t>(row_of(i)) * all_cols + column_of(i);
    }
    /* Of chunk 0, and from chunk to chunk, for outputs of element_bytes. */
    __device__ __forceinline__ uint64_t key(const tile_place &place, uint32_t element_bytes) const
    {
        return digest_key(place.first_word + row * place.words_per_row +
                          column / 8 * element_bytes);
    }
    __device__ __forceinline__ uint64_t key_step(const tile_place &place,
                                                 uint32_t element_bytes) const
    {
        return (row_step * place.words_per_row + column_step / 8 * element_bytes) *
               WEIR_DIGEST_STEP;
    }
};

/* The sums of the job at hand. */
struct job_digest {
    digest_sum sums;
    uint32_t number;
    bool any;

    /* All converting threads of the block. */
    __device__ __forceinline__ void flush(const weir_cuda_launch &launch)
    {
        if (!any)
            return;
        block_add(sums, &launch.results[number].product, &launch.results[number].sum);
        sums.clear();
        any = false;
    }
    __device__ __forceinline__ void turn_to(const weir_cuda_launch &launch, const tile_place &place)
    {
        if (place.number != number)
            flush(launch);
        number = place.number;
        any |= place.digests;
    }
};

/* ---- what is ahead ---------------------------------------------------------------------------*/

#define STAGES 2u
#define STAGE_CHUNKS (WEIR_CUDA_CHUNKS * WEIR_CUDA_THREADS) /* of 16 bytes */

template <class From, class To> struct walk {
    /* Whether tiles pass through shared memory, one being fetched while another is converted. It
     * pays where less is written than read; F32 would take twice the room. */
    static constexpr bool staged = To::staged && From::source_bytes == 2;
    static constexpr bool prefetches = From::prefetches && !staged;
    static constexpr uint32_t shared_bytes = staged ? STAGES * STAGE_CHUNKS * 16 : 0;
    /* How far ahead of the tile at hand the next places are known. A slow thread may still look at
     * the place of the tile before. */
    static constexpr uint32_t ahead = staged ? STAGES : 1;
    static constexpr uint32_t n_places = ahead + 2;
    /* Wide outputs take more registers while they are swapped between neighbours (to_float.cuh). */
    static constexpr uint32_t blocks_per_sm =
        staged || To::element_bytes == 4 ? 2 : From::blocks_per_sm;
};

/* The last warp of a block. The first tiles are given; the others are handed out one by one, and
 * the number of each is asked for a tile before it is needed, since the answer takes as long as a
 * load. */
template <class From, class To>
__device__ __forceinline__ void find_places(const weir_cuda_launch &launch, tile_place *places)
{
    constexpr uint32_t ahead = walk<From, To>::ahead, n = walk<From, To>::n_places;
    const bool asks = threadIdx.x % 32 == 0;
    uint32_t upcoming = 0;
    for (uint32_t k = 0; k < ahead; k++) { /* only the image is read, which no kernel writes */
        find_place<From, To>(launch, k * gridDim.x + blockIdx.x, &places[k], false);
        __syncthreads();
    }
    await_previous();
    if (asks)
        upcoming = ahead * gridDim.x + atomicAdd(launch.next_tile, 1);
    for (uint32_t k = 0; !places[k % n].none; k++) {
        const uint32_t next = __shfl_sync(FULL_WARP, upcoming, 0);
        if (asks)
            upcoming = ahead * gridDim.x + atomicAdd(launch.next_tile, 1);
        find_place<From, To>(launch, next, &places[(k + ahead) % n], walk<From, To>::prefetches);
        __syncthreads();
    }
}

/* ---- the walk --------------------------------------------------------------------------------*/

/* 16 bytes to shared memory behind the thread's back; zeros unless `there`. */
__device__ __forceinline__ void fetch_16(uint4 *to, const void *from, bool there)
{
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

/* Has a thread's chunks of a tile brought to its own place in a stage: nobody else reads them, so
 * nobody is waited for. */
template <class From, class To>
__device__ __forceinline__ void fetch_tile(const tile_place &place, uint4 *stage)
{
    if (!place.none) {
        const thread_chunks<To::block> chunks(place);
#pragma unroll
        for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++)
            fetch_16(&stage[i * WEIR_CUDA_THREADS + threadIdx.x],
                     place.rows[chunks.row_of(i) % MOST_TILE_ROWS] +
                         chunks.column_of(i) * From::source_bytes,
                     chunks.has(i));
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* The tile that was fetched STAGES - 1 tiles ago. */
template <class From>
__device__ __forceinline__ void take_tile(const uint4 *stage,
                                          typename From::held (&held)[WEIR_CUDA_CHUNKS])
{
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
#pragma unroll
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++)
        held[i] = From::hold(stage[i * WEIR_CUDA_THREADS + threadIdx.x]);
}

template <class From, class To>
__device__ __forceinline__ void load_tile(const weir_cuda_launch &launch, const tile_place &place,
                                          const thread_chunks<To::block> &chunks,
                                          typename From::held (&held)[WEIR_CUDA_CHUNKS])
{
    typename From::raw raw[WEIR_CUDA_CHUNKS];
#pragma unroll
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++)
        raw[i] = chunk_loader<From>::load(launch, place, chunks.row_of(i), chunks.column_of(i),
                                          From::exact_rows ? chunks.n_of(i) : chunks.has(i));
#pragma unroll
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++)
        held[i] = From::hold(raw[i]);
}

/* Every To says what it writes (element_bytes), whether its tiles are 128 x 128 (block), whether
 * they may be staged, where a tile's scales lie, and converts a tile that is held. convert() calls
 * __syncthreads() exactly once: before it the next place was written. */
template <class From, class To>
__global__ void __launch_bounds__(WEIR_CUDA_BLOCK_THREADS, walk<From, To>::blocks_per_sm)
    convert_tiles(const __grid_constant__ weir_cuda_launch launch)
{
    constexpr bool staged = walk<From, To>::staged;
    constexpr uint32_t n = walk<From, To>::n_places;
    extern __shared__ uint4 stages[];
    __shared__ tile_place places[n];
    if (threadIdx.x >= WEIR_CUDA_THREADS) {
        find_places<From, To>(launch, places);
        return;
    }
    await_previous();
    job_digest digest = { { 0, 0 }, 0, false };
    __syncthreads();
    for (uint32_t k = 0; k + 1 < walk<From, To>::ahead; k++) {
        fetch_tile<From, To>(places[k], stages + k * STAGE_CHUNKS);
        __syncthreads();
    }
    for (uint32_t k = 0;; k++) {
        const tile_place &place = places[k % n];
        if (place.none)
            break;
        if (staged)
            fetch_tile<From, To>(places[(k + STAGES - 1) % n],
                                 stages + (k + STAGES - 1) % STAGES * STAGE_CHUNKS);
        digest.turn_to(launch, place);
        const thread_chunks<To::block> chunks(place);
        typename From::held held[WEIR_CUDA_CHUNKS];
        if constexpr (staged)
            take_tile<From>(stages + k % STAGES * STAGE_CHUNKS, held);
        else
            load_tile<From, To>(launch, place, chunks, held);
        To::template convert<From>(launch, place, chunks, held, k, &digest.sums);
    }
    digest.flush(launch);
}

#endif
