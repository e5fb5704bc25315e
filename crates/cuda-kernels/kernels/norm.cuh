#pragma once
// RMSNorm and LayerNorm.

#include "normed.cuh"

struct NormArgs {
    const T* x;  // [rows, width]
    Norm norm;
    T* out;      // [rows, width]
    int rows;
};

struct StoreNormed {
    const NormArgs& args;

    template <int PARTS>
    DEVICE void operator()(int row, const float (&values)[PARTS][8]) const {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i < args.norm.width) store(args.out + (i64)row * args.norm.width + i, values[part]);
        }
    }
};

template <bool CENTRED>
DEVICE void norm_all(const NormArgs& args) {
    norm_rows<CENTRED>(args.x, args.norm, args.rows, StoreNormed{args});
}
