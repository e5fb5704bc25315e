#pragma once
// The rows of all experts times their weights, on the tensor cores.

#include "mma.cuh"
#include "moe_tile.cuh"

#define STEP_ELEMS 64   // inputs of a stage: lines of 128 bytes
#define STAGES 4
#define ROW_TILES (TILE_ROWS / 16)
#define FETCHED_LINES (32 * MULTIPLY_WARPS / 8) // at once: 8 threads a line
#define COLUMN_TILES (WEIGHT_LINES / MULTIPLY_WARPS / 8) // of a warp
#define STAGE_BYTES ((TILE_ROWS + WEIGHT_LINES) * 128)

// Where 16 bytes of a line lie in a tile of lines of 128 bytes: the chunks of neighbouring lines in different banks.
DEVICE u32 swizzled(int line, int chunk) { return line * 128 + (chunk ^ line % 8) * 16; }

// IS_IN: rows are taken from where they are and go through the activation; else places, to float32.
template <bool IS_IN>
struct Tile {
    const MultiplyArgs& args;
    int4 tile; // expert, first place, number of rows
    int first_out;
    u32 stages;
    int num_in; // of a piece
    int piece;

    // The line of the weight that is the block's line number `line`. Gated, gates and what they multiply alternate in
    // eights, so that a warp has both.
    DEVICE int weight_line(int line) const {
        if (IS_IN && IS_GATED) {
            int output = first_out + line / 16 * 8 + line % 8;
            return min(output, args.num_out - 1) + (line / 8 % 2) * args.num_out;
        }
        return min(first_out + line, args.num_out - 1);
    }

    // Where this thread's 16 bytes of each line lie: every 16th line of rows and of the weight.
    const T* rows[ROW_TILES];
    const T* lines[WEIGHT_LINES / FETCHED_LINES];

    DEVICE void find_lines() {
        int line = threadIdx.x / 8, in = piece * num_in + threadIdx.x % 8 * 8;
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++) {
            int place = tile.y + min(line + i * FETCHED_LINES, tile.z - 1);
            i64 row = IS_IN ? args.places[place] / args.topk : place;
            rows[i] = args.x + row * args.num_in + in;
        }
        const T* weight = (const T*)args.weights[tile.x];
#pragma unroll
        for (int i = 0; i < WEIGHT_LINES / FETCHED_LINES; i++) {
            lines[i] = weight + (i64)weight_line(line + i * FETCHED_LINES) * args.num_in + in;
        }
    }

    DEVICE void fetch(int step) const {
        int line = threadIdx.x / 8, chunk = threadIdx.x % 8, first_in = step * STEP_ELEMS;
        bool is_there = first_in + chunk * 8 < num_in;
        // Past the end nothing is read, and the address must still be one of the line.
        int offset = is_there ? first_in : 0;
        u32 to = stages + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++) {
            copy16(to + swizzled(line + i * FETCHED_LINES, chunk), rows[i] + offset, is_there);
        }
#pragma unroll
        for (int i = 0; i < WEIGHT_LINES / FETCHED_LINES; i++) {
            copy16(to + TILE_ROWS * 128 + swizzled(line + i * FETCHED_LINES, chunk), lines[i] + offset, is_there);
        }
    }

    DEVICE void multiply(int step, float (&sums)[ROW_TILES][COLUMN_TILES][4]) const {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        u32 x = stages + step % STAGES * STAGE_BYTES, weight = x + TILE_ROWS * 128;
#pragma unroll
        for (int k = 0; k < STEP_ELEMS / 16; k++) {
            u32 columns[COLUMN_TILES / 2][4];
#pragma unroll
            for (int i = 0; i < COLUMN_TILES / 2; i++) {
                // Both halves of the inputs of 8 columns, then of the next 8.
                int line = warp * (WEIGHT_LINES / MULTIPLY_WARPS) + i * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(columns[i], weight + swizzled(line, k * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                u32 rows[4];
                load_matrices(rows, x + swizzled(r * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; c++) {
                    mma(sums[r][c], rows[0], rows[1], rows[2], rows[3], columns[c / 2][c % 2 * 2], columns[c / 2][c % 2 * 2 + 1]);
                }
            }
        }
    }

    DEVICE void store_sums(const float (&sums)[ROW_TILES][COLUMN_TILES][4]) const {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int line = r * 16 + half * 8 + lane / 4;
                if (line >= tile.z) continue;
                i64 place = tile.y + line;
                constexpr int WIDE = IS_IN && IS_GATED ? 2 : 1;
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; c += WIDE) {
                    int output = first_out + (warp * COLUMN_TILES + c) / WIDE * 8 + lane % 4 * 2;
                    if (output >= args.num_out) continue;
                    float a = sums[r][c][half * 2], b = sums[r][c][half * 2 + 1];
                    if constexpr (IS_IN) {
                        a = activated(rounded(a), ACTIVATION), b = activated(rounded(b), ACTIVATION);
                        if constexpr (WIDE == 2) a *= rounded(sums[r][c + 1][half * 2]), b *= rounded(sums[r][c + 1][half * 2 + 1]);
                        *(u32*)((T*)args.out + place * args.num_out + output) = pack2(a, b);
                    } else {
                        float* out = (float*)args.out + piece * args.piece_stride;
                        *(float2*)(out + place * args.num_out + output) = make_float2(a, b);
                    }
                }
            }
        }
    }
};

template <bool IS_IN>
DEVICE void multiply_tile(const MultiplyArgs& args) {
    extern __shared__ uint4 ring[];
    let_next_start();
    wait_for_previous();
    if (blockIdx.y >= *args.num_tiles) return;
    constexpr int OUTPUTS = IS_IN && IS_GATED ? WEIGHT_LINES / 2 : WEIGHT_LINES;
    u32 start = ((u32)__cvta_generic_to_shared(ring) + 127) / 128 * 128;
    int num_in = IS_IN ? args.num_in : args.num_in / args.num_pieces;
    Tile<IS_IN> tile = {args, args.tiles[blockIdx.y], (int)blockIdx.x * OUTPUTS, start, num_in, IS_IN ? 0 : (int)blockIdx.z, {}, {}};
    int num_steps = (num_in + STEP_ELEMS - 1) / STEP_ELEMS;
    float sums[ROW_TILES][COLUMN_TILES][4] = {};
    tile.find_lines();
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < num_steps) tile.fetch(step);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (int step = 0; step < num_steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        // Also: all have read what the next fetch writes over.
        __syncthreads();
        if (step + STAGES - 1 < num_steps) tile.fetch(step + STAGES - 1);
        asm volatile("cp.async.commit_group;" ::: "memory");
        tile.multiply(step, sums);
    }
    tile.store_sums(sums);
}

// Grid: parts of the outputs, tiles, pieces of the inputs. Shared memory: STAGES stages and 128 bytes.
extern "C" __global__ void __launch_bounds__(32 * MULTIPLY_WARPS) experts_in(MultiplyArgs args) { multiply_tile<true>(args); }

extern "C" __global__ void __launch_bounds__(32 * MULTIPLY_WARPS) experts_out(MultiplyArgs args) { multiply_tile<false>(args); }
