/* SPDX-License-Identifier: Apache-2.0 */
/* tile_place.cuh - which tile a thread block has, and where its rows lie.
 *
 * The job table stays in the first-level cache, since source rows are loaded past it; finding a
 * place takes a few dozen cycles against the thousands that a tile's rows take to arrive.
 */
#ifndef WEIR_CONVERT_TILE_PLACE_CUH
#define WEIR_CONVERT_TILE_PLACE_CUH

#include "convert/cuda/source_chunk.cuh"

#define FULL_WARP 0xFFFFFFFFu
#define MOST_TILE_ROWS 128u

/* A block's share of a matrix; rows and columns count from the tile's first. */
struct tile_place {
    uint32_t matrix, row, column;
    uint32_t n_rows, n_cols;
};

/* Where the rows of a tile begin, and which segment they belong to. */
struct tile_rows {
    const void *at[MOST_TILE_ROWS];
    uint32_t segment[MOST_TILE_ROWS];
};

/* The last job whose first tile is not past `tile`: 32 candidates a step, one per lane. */
__device__ __forceinline__ uint32_t find_job(const weir_cuda_launch &launch, uint32_t tile)
{
    uint32_t lane = threadIdx.x % 32, low = 0, n = launch.n_jobs;
    while (n > 1) {
        uint32_t step = (n + 31) / 32, mine = lane * step;
        bool reached = mine < n && __ldg(&launch.first_tiles[low + mine]) <= tile;
        uint32_t last = 31 - __clz(__ballot_sync(FULL_WARP, reached));
        low += last * step;
        n = min(step, n - last * step);
    }
    return low;
}

__device__ __forceinline__ tile_place place_of(const weir_cuda_job &job, uint32_t tile)
{
    uint32_t per_matrix = job.tiles_down * job.tiles_across;
    tile_place p;
    p.matrix = tile / per_matrix;
    uint32_t rest = tile - p.matrix * per_matrix, down = rest / job.tiles_across;
    p.row = down * job.tile_rows;
    p.column = (rest - down * job.tiles_across) * job.tile_cols;
    p.n_rows = min(job.tile_rows, job.n_rows - p.row);
    p.n_cols = min(job.tile_cols, job.n_cols - p.column);
    return p;
}

__device__ __forceinline__ const void *row_address(const weir_cuda_launch &launch,
                                                   const weir_cuda_job &job, uint32_t matrix,
                                                   uint32_t row, uint32_t *out_segment)
{
    uint32_t s = job.first_segment + (job.separate ? matrix * job.n_segments : 0);
    const uint32_t last = s + job.n_segments - 1;
    const weir_cuda_segment *segments = launch.segments;
    while (s < last && row >= __ldg(&segments[s + 1].first))
        s++;
    *out_segment = s;
    uint64_t within = row - __ldg(&segments[s].first);
    if (!job.separate)
        within += static_cast<uint64_t>(matrix) * __ldg(&segments[s].n);
    uint32_t element_bytes = __ldg(&segments[s].dtype) == WEIR_F32 ? 4 : 2;
    return reinterpret_cast<const void *>(__ldg(&segments[s].data) +
                                          within * job.n_cols * element_bytes);
}

/* Fills `rows`; the caller synchronises. A vector has no row of one address. */
__device__ __forceinline__ void find_rows(const weir_cuda_launch &launch, const weir_cuda_job &job,
                                          const tile_place &place, tile_rows *rows)
{
    uint32_t r = threadIdx.x;
    if (r < place.n_rows)
        rows->at[r] =
            job.vector ? nullptr
                       : row_address(launch, job, place.matrix, place.row + r, &rows->segment[r]);
}

/* Element by element, for what does not move in 16 bytes. Zeros behind the last. */
[[maybe_unused]] static __device__ __noinline__ void
load_any(const weir_cuda_launch &launch, const weir_cuda_job &job, const tile_rows &rows,
         uint32_t row, uint32_t column, uint32_t n, float out[8])
{
    for (uint32_t i = 0; i < 8; i++) {
        out[i] = 0;
        if (i >= n)
            continue;
        if (!job.vector) {
            out[i] = any_value(rows.at[row], column + i, launch.segments[rows.segment[row]]);
            continue;
        }
        uint32_t s = 0;
        const weir_cuda_segment *segments = launch.segments + job.first_segment;
        while (s + 1 < job.n_segments && column + i >= segments[s + 1].first)
            s++;
        out[i] = any_value(reinterpret_cast<const void *>(segments[s].data),
                           column + i - segments[s].first, segments[s]);
    }
}

/* Loads one chunk; `column` counts from the matrix' first. */
template <class From> struct chunk_loader {
    static __device__ __forceinline__ typename From::raw load(const weir_cuda_launch &,
                                                              const weir_cuda_job &,
                                                              const tile_rows &rows, uint32_t row,
                                                              uint32_t column, uint32_t)
    {
        return From::load(rows.at[row], column);
    }
};

template <> struct chunk_loader<from_any> {
    static __device__ __forceinline__ eight_floats load(const weir_cuda_launch &launch,
                                                        const weir_cuda_job &job,
                                                        const tile_rows &rows, uint32_t row,
                                                        uint32_t column, uint32_t n)
    {
        eight_floats out;
        load_any(launch, job, rows, row, column, n, out.v);
        return out;
    }
};

#endif
