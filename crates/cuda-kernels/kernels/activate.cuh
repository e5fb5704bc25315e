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

template <int W>
DEVICE void activate_row(const ActivateArgs& args) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (i >= args.width) return;
    const T* row = args.x + (i64)blockIdx.x * args.width * (args.is_gated ? 2 : 1);
    float values[W], gates[W];
    load(row + i, values);
    if (args.is_gated) load(row + args.width + i, gates);
#pragma unroll
    for (int j = 0; j < W; j++) {
        values[j] = activated(values[j], args.activation);
        if (args.is_gated) values[j] *= gates[j];
    }
    store(args.out + (i64)blockIdx.x * args.width + i, values);
}

// Grid: rows, then parts of a row of 8 (or, when `width` is not a multiple of 8, 1) elements a thread.
extern "C" __global__ void activate(ActivateArgs args) {
    let_next_start();
    wait_for_previous();
    if (args.width % 8 == 0) {
        activate_row<8>(args);
    } else {
        activate_row<1>(args);
    }
}
