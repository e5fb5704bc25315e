#pragma once
// RMSNorm and LayerNorm.

#define MAX_PARTS 2

// One block a row, the row held in registers: 8 elements a thread and part. `width` is a multiple of 8 and at most
// 8 * blockDim.x * MAX_PARTS.
struct NormArgs {
    const T* x;         // [rows, width]
    const float* gain;  // [width]
    const float* bias;  // [width], or null
    T* out;             // [rows, width]
    int width;
    float eps;
};

template <bool CENTRED>
DEVICE void norm_row(const NormArgs& args) {
    __shared__ float scratch[64];
    let_next_start();
    float gains[MAX_PARTS][8], shifts[MAX_PARTS][8] = {};
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= args.width) continue;
        load(args.gain + i, gains[part]);
        if (args.bias) load(args.bias + i, shifts[part]);
    }
    wait_for_previous();
    i64 start = (i64)blockIdx.x * args.width;
    float values[MAX_PARTS][8];
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= args.width) continue;
        load(args.x + start + i, values[part]);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += CENTRED ? values[part][j] : values[part][j] * values[part][j];
    }
    sum = block_sum(sum, scratch);
    float mean = 0.0f;
    if constexpr (CENTRED) {
        mean = sum / args.width;
        sum = 0.0f;
#pragma unroll
        for (int part = 0; part < MAX_PARTS; part++) {
            if ((part * blockDim.x + threadIdx.x) * 8 >= args.width) continue;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float centred = values[part][j] - mean;
                sum += centred * centred;
            }
        }
        sum = block_sum(sum, scratch + 32);
    }
    float scale = rsqrtf(sum / args.width + args.eps);
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= args.width) continue;
        float result[8];
#pragma unroll
        for (int j = 0; j < 8; j++) result[j] = (values[part][j] - mean) * scale * gains[part][j] + shifts[part][j];
        store(args.out + start + i, result);
    }
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm(NormArgs args) { norm_row<false>(args); }

extern "C" __global__ void __launch_bounds__(1024) layer_norm(NormArgs args) { norm_row<true>(args); }
