#pragma once
// The rows of all experts times their weights in float32, on the ordinary cores: what results are compared with, not fast.

#include "moe_tile.cuh"

// One warp; all lanes have the sum.
DEVICE float dot(const T* x, const T* weight, int num_in) {
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < num_in; i += 32) sum = fmaf(x[i], weight[i], sum);
    return warp_sum(sum);
}

// IS_IN: rows are taken from where they are and go through the activation; else places.
template <bool IS_IN>
DEVICE void multiply_tile(const MultiplyArgs& args) {
    let_next_start();
    wait_for_previous();
    if (blockIdx.y >= *args.num_tiles) return;
    constexpr int OUTPUTS = IS_IN && IS_GATED ? WEIGHT_LINES / 2 : WEIGHT_LINES;
    int4 tile = args.tiles[blockIdx.y]; // expert, first place, number of rows
    const T* weight = (const T*)args.weights[tile.x];
    for (int line = threadIdx.x / 32; line < OUTPUTS; line += MULTIPLY_WARPS) {
        int output = blockIdx.x * OUTPUTS + line;
        if (output >= args.num_out) break;
        for (int r = 0; r < tile.z; r++) {
            i64 place = tile.y + r;
            const T* x = args.x + (IS_IN ? args.places[place] / args.topk : place) * args.num_in;
            int num_in = IS_IN ? args.num_in : args.num_in / args.num_pieces, first_in = blockIdx.z * num_in;
            float result = dot(x + first_in, weight + (i64)output * args.num_in + first_in, num_in);
            if constexpr (IS_IN) {
                result = activated(result, ACTIVATION);
                if constexpr (IS_GATED) result *= dot(x, weight + (i64)(output + args.num_out) * args.num_in, args.num_in);
            }
            float* out = (float*)args.out + blockIdx.z * args.piece_stride;
            if (threadIdx.x % 32 == 0) out[place * args.num_out + output] = result;
        }
    }
}

// Grid: parts of the outputs, tiles, pieces of the inputs.
extern "C" __global__ void __launch_bounds__(32 * MULTIPLY_WARPS) experts_in(MultiplyArgs args) { multiply_tile<true>(args); }

extern "C" __global__ void __launch_bounds__(32 * MULTIPLY_WARPS) experts_out(MultiplyArgs args) { multiply_tile<false>(args); }
