/* SPDX-License-Identifier: Apache-2.0 */
/* tile_place.cuh - which tile comes next, and where its rows lie.
 *
 * Finding a place takes a chain of small loads. A block's first warp walks it for the next tile
 * while the rows of the present one are on their way, so that nobody waits for it.
 */
#ifndef WEIR_CONVERT_TILE_PLACE_CUH
#define WEIR_CONVERT_TILE_PLACE_CUH

#include "convert/cuda/source_chunk.cuh"

#define FULL_WARP 0xFFFFFFFFu

#define MOST_TILE_ROWS 128u

/* A tile as all threads of its block see it; rows and columns count from its first. */
struct tile_place {
    const char *rows[MOST_TILE_ROWS];   /* where they begin */
    uint64_t out, scale;                /* its first element, its first scale */
    uint64_t magnitudes;                /* parallel to the scales; 0: none but its own */
    uint64_t first_word, words_per_row; /* of output 0's digest */
    uint32_t n_rows, n_cols;
    uint32_t all_cols; /* of the matrix: from one row to the next */
    uint32_t log_lanes;
    uint32_t job, number, matrix, row, column;
    bool digests, propagate;
    bool none; /* no tile is left */
};

/* The last job whose first tile is not past `tile`: 32 candidates a step, one per lane. */
__device__ __forceinline__ uint32_t find_job(const uint32_t *first_tiles, uint32_t n_jobs,
                                             uint32_t tile)
{
    uint32_t lane = threadIdx.x % 32, low = 0, n = n_jobs;
    while (n > 1) {
        uint32_t step = (n + 31) / 32, mine = lane * step;
        bool reached = mine < n && __ldg(&first_tiles[low + mine]) <= tile;
        uint32_t last = 31 - __clz(__ballot_sync(FULL_WARP, reached));
        low += last * step;
        n = min(step, n - last * step);
    }
    return low;
}

/* The segment that holds a row of a matrix. */
__device__ __forceinline__ uint32_t segment_of(const weir_cuda_launch &launch,
                                               const weir_cuda_job &job, uint32_t matrix,
                                               uint32_t row)
{
    uint32_t s = job.first_segment + (job.separate ? matrix * job.n_segments : 0);
    const uint32_t last = s + job.n_segments - 1;
    while (s < last && row >= __ldg(&launch.segments[s + 1].first))
        s++;
    return s;
}

__device__ __forceinline__ const char *row_address(const weir_cuda_launch &launch,
                                                   const weir_cuda_job &job, uint32_t segment,
                                                   uint32_t matrix, uint32_t row)
{
    const weir_cuda_segment *s = &launch.segments[segment];
    uint64_t within = row - __ldg(&s->first);
    if (!job.separate)
        within += static_cast<uint64_t>(matrix) * __ldg(&s->n);
    return reinterpret_cast<const char *>(__ldg(&s->data) + within * __ldg(&s->row_step));
}

#define LINE_BYTES 128u

/* Has a tile's rows brought into the second-level cache, so that the memory is busy while the block
 * still converts. A whole warp takes part. */
__device__ __forceinline__ void prefetch_rows(const char *const *rows, uint32_t n_rows,
                                              uint32_t row_bytes)
{
    const uint32_t lines = (row_bytes + LINE_BYTES - 1) / LINE_BYTES;
    for (uint32_t i = threadIdx.x % 32; i < n_rows * lines; i += 32) {
        uint32_t r = i / lines;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(rows[r] + (i - r * lines) * LINE_BYTES)
                     : "memory");
    }
}

/* Describes a tile, and may have its rows prefetched; a whole warp takes part. */
template <class From, class To>
__device__ __forceinline__ void find_place(const weir_cuda_launch &launch, uint32_t tile,
                                           tile_place *out, bool prefetches)
{
    const uint32_t lane = threadIdx.x % 32;
    if (tile >= launch.n_tiles) {
        if (lane == 0)
            out->none = true;
        return;
    }
    const uint32_t index = find_job(launch.first_tiles, launch.n_jobs, tile);
    const weir_cuda_job &job = launch.jobs[index];
    const uint32_t in_job = tile - __ldg(&launch.first_tiles[index]);
    const uint32_t per_matrix = job.tiles_down * job.tiles_across, matrix = in_job / per_matrix;
    const uint32_t rest = in_job - matrix * per_matrix, down = rest / job.tiles_across;
    const uint32_t row = down * job.tile_rows, n_rows = min(job.tile_rows, job.n_rows - row);
    const uint32_t column = (rest - down * job.tiles_across) * job.tile_cols;
    const uint32_t n_cols = min(job.tile_cols, job.n_cols - column);
    for (uint32_t r = lane; r < n_rows; r += 32) {
        out->rows[r] =
            row_address(launch, job, segment_of(launch, job, matrix, row + r), matrix, row + r) +
            static_cast<uint64_t>(column) * From::source_bytes;
    }
    __syncwarp();
    if (prefetches)
        prefetch_rows(out->rows, n_rows, n_cols * From::source_bytes);
    if (lane != 0)
        return;
    const uint64_t out_row = static_cast<uint64_t>(matrix) * job.n_rows + row;
    out->out = job.out + (out_row * job.n_cols + column) * To::element_bytes;
    out->scale = To::scale_address(job, matrix, row, column);
    out->magnitudes = job.magnitudes != 0 ? job.magnitudes + (out->scale - job.scales) : 0;
    out->first_word = job.first_word + out_row * job.words_per_row + column / 8 * To::element_bytes;
    out->words_per_row = job.words_per_row;
    out->n_rows = n_rows;
    out->n_cols = n_cols;
    out->all_cols = job.n_cols;
    out->log_lanes = job.log_lanes;
    out->job = index;
    out->number = job.number;
    out->matrix = matrix;
    out->row = row;
    out->column = column;
    out->digests = job.digests;
    out->propagate = job.propagate;
    out->none = false;
}

/* ---- chunks ----------------------------------------------------------------------------------*/

/* Element by element, for what does not move in 16 bytes. Zeros behind the last. */
[[maybe_unused]] static __device__ __noinline__ void load_any(const weir_cuda_launch &launch,
                                                              const tile_place &place, uint32_t row,
                                                              uint32_t column, uint32_t n,
                                                              float out[8])
{
    const weir_cuda_job &job = launch.jobs[place.job];
    for (uint32_t i = 0; i < 8; i++) {
        out[i] = 0;
        if (i >= n)
            continue;
        uint32_t at = place.column + column + i, in_rows = job.vector ? at : place.row + row;
        uint32_t s = segment_of(launch, job, place.matrix, in_rows);
        const weir_cuda_segment &segment = launch.segments[s];
        out[i] = job.vector
                     ? any_value(reinterpret_cast<const void *>(segment.data), at - segment.first,
                                 segment)
                     : any_value(row_address(launch, job, s, place.matrix, in_rows), at, segment);
    }
}

/* Loads one chunk, of which n elements are there; zeros when n is 0. No call stands in the way of
 * the vector loads: what is on its way would have to be saved around it, and so be waited for. */
template <class From> struct chunk_loader {
    static __device__ __forceinline__ typename From::raw load(const weir_cuda_launch &,
                                                              const tile_place &place, uint32_t row,
                                                              uint32_t column, uint32_t n)
    {
        return From::load(place.rows[row % MOST_TILE_ROWS] + column * From::source_bytes, n != 0);
    }
};

template <> struct chunk_loader<from_any> {
    static __device__ __forceinline__ eight_floats load(const weir_cuda_launch &launch,
                                                        const tile_place &place, uint32_t row,
                                                        uint32_t column, uint32_t n)
    {
        eight_floats out;
        load_any(launch, place, row, column, n, out.v);
        return out;
    }
};

#endif
