#pragma once
// RMSNorm and LayerNorm of a row, one block a row.

#define MAX_PARTS 2

// What a row is normalised with. `width` is a multiple of 8 and at most 8 * blockDim.x * MAX_PARTS.
struct Norm {
    const float* gain;  // [width]
    const float* bias;  // [width], or null
    int width;
    float eps;
};

// The normed elements of the block's row, which is held in registers: 8 elements a thread and part.
template <bool CENTRED>
DEVICE void normed(const T* x, const Norm& norm, float (&values)[MAX_PARTS][8]) {
    __shared__ float scratch[64];
    let_next_start();
    float gains[MAX_PARTS][8], shifts[MAX_PARTS][8] = {};
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= norm.width) continue;
        load(norm.gain + i, gains[part]);
        if (norm.bias) load(norm.bias + i, shifts[part]);
    }
    wait_for_previous();
    const T* row = x + (i64)blockIdx.x * norm.width;
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= norm.width) continue;
        load(row + i, values[part]);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += CENTRED ? values[part][j] : values[part][j] * values[part][j];
    }
    sum = block_sum(sum, scratch);
    float mean = 0.0f;
    if constexpr (CENTRED) {
        mean = sum / norm.width;
        sum = 0.0f;
#pragma unroll
        for (int part = 0; part < MAX_PARTS; part++) {
            if ((part * blockDim.x + threadIdx.x) * 8 >= norm.width) continue;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float centred = values[part][j] - mean;
                sum += centred * centred;
            }
        }
        sum = block_sum(sum, scratch + 32);
    }
    float scale = rsqrtf(sum / norm.width + norm.eps);
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        if ((part * blockDim.x + threadIdx.x) * 8 >= norm.width) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) values[part][j] = (values[part][j] - mean) * scale * gains[part][j] + shifts[part][j];
    }
}
