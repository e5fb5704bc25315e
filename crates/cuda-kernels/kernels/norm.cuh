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

// A row in the registers of a block: 8 elements a thread and part. Norms it with gains and shifts that lie the same way.
template <bool CENTRED, int PARTS>
DEVICE void norm_values(const float (&values)[PARTS][8], const float (&gains)[PARTS][8], const float (&shifts)[PARTS][8],
                        T* out, int width, float eps, float* scratch) {
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        if ((part * blockDim.x + threadIdx.x) * 8 >= width) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) sum += CENTRED ? values[part][j] : values[part][j] * values[part][j];
    }
    sum = block_sum(sum, scratch);
    float mean = 0.0f;
    if constexpr (CENTRED) {
        mean = sum / width;
        sum = 0.0f;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            if ((part * blockDim.x + threadIdx.x) * 8 >= width) continue;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float centred = values[part][j] - mean;
                sum += centred * centred;
            }
        }
        sum = block_sum(sum, scratch + 32);
    }
    float scale = rsqrtf(sum / width + eps);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= width) continue;
        float result[8];
#pragma unroll
        for (int j = 0; j < 8; j++) result[j] = (values[part][j] - mean) * scale * gains[part][j] + shifts[part][j];
        store(out + i, result);
    }
}

// Gains and shifts of this thread's elements.
template <int PARTS>
DEVICE void load_gains(const float* gain, const float* bias, int width, float (&gains)[PARTS][8], float (&shifts)[PARTS][8]) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= width) continue;
        load(gain + i, gains[part]);
        if (bias) load(bias + i, shifts[part]);
    }
}

template <bool CENTRED>
DEVICE void norm_row(const NormArgs& args) {
    __shared__ float scratch[64];
    let_next_start();
    float gains[MAX_PARTS][8], shifts[MAX_PARTS][8] = {};
    load_gains(args.gain, args.bias, args.width, gains, shifts);
    wait_for_previous();
    i64 start = (i64)blockIdx.x * args.width;
    float values[MAX_PARTS][8];
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i < args.width) load(args.x + start + i, values[part]);
    }
    norm_values<CENTRED>(values, gains, shifts, args.out + start, args.width, args.eps, scratch);
}
