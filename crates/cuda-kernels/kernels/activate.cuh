#pragma once
// The nonlinearity of the feed-forward part, plain or gated.

#include "nonlinearity.cuh"

struct ActivateArgs {
    const T* x;  // [rows, width], or [rows, 2 * width] when gated
    T* out;      // [rows, width]
    int width;
    int activation;
    int is_gated;
};

#define AT_ONCE 2 // vectors of a thread, so that enough loads are in flight

template <int W>
DEVICE void activate_row(const ActivateArgs& args) {
    int first = (blockIdx.y * AT_ONCE * blockDim.x + threadIdx.x) * W, stride = blockDim.x * W;
    const T* row = args.x + (i64)blockIdx.x * args.width * (args.is_gated ? 2 : 1);
    float values[AT_ONCE][W], gates[AT_ONCE][W];
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
        int i = first + n * stride;
        if (i >= args.width) continue;
        load(row + i, values[n]);
        if (args.is_gated) load(row + args.width + i, gates[n]);
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
        int i = first + n * stride;
        if (i >= args.width) continue;
#pragma unroll
        for (int j = 0; j < W; j++) {
            values[n][j] = activated(values[n][j], args.activation);
            if (args.is_gated) values[n][j] *= gates[n][j];
        }
        store(args.out + (i64)blockIdx.x * args.width + i, values[n]);
    }
}

// Grid: rows, then parts of a row of AT_ONCE vectors a thread, of 8 elements or, when `width` is not a multiple of 8, 1.
extern "C" __global__ void activate(ActivateArgs args) {
    let_next_start();
    wait_for_previous();
    if (args.width % 8 == 0) {
        activate_row<8>(args);
    } else {
        activate_row<1>(args);
    }
}
