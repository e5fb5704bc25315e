#pragma once
// RMSNorm and LayerNorm.

#include "normed.cuh"

struct NormArgs {
    const T* x;  // [rows, width]
    Norm norm;
    T* out;      // [rows, width]
};

template <bool CENTRED>
DEVICE void norm_row(const NormArgs& args) {
    float values[MAX_PARTS][8];
    normed<CENTRED>(args.x, args.norm, values);
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i < args.norm.width) store(args.out + (i64)blockIdx.x * args.norm.width + i, values[part]);
    }
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm(NormArgs args) { norm_row<false>(args); }

extern "C" __global__ void __launch_bounds__(1024) layer_norm(NormArgs args) { norm_row<true>(args); }
