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

// Gains and shifts of this thread's elements.
template <int PARTS>
DEVICE void load_gains(const Norm& norm, float (&gains)[PARTS][8], float (&shifts)[PARTS][8]) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= norm.width) continue;
        load(norm.gain + i, gains[part]);
        if (norm.bias) load(norm.bias + i, shifts[part]);
    }
}

// Normalises a row in the registers of a block, 8 elements a thread and part, with gains and shifts that lie the same way.
template <bool CENTRED, int PARTS>
DEVICE void norm_values(const Norm& norm, const float (&gains)[PARTS][8], const float (&shifts)[PARTS][8],
                        float (&values)[PARTS][8], float* scratch) {
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        if ((part * blockDim.x + threadIdx.x) * 8 >= norm.width) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) sum += CENTRED ? values[part][j] : values[part][j] * values[part][j];
    }
    sum = block_sum(sum, scratch);
    float mean = 0.0f;
    if constexpr (CENTRED) {
        mean = sum / norm.width;
        sum = 0.0f;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
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
    for (int part = 0; part < PARTS; part++) {
        if ((part * blockDim.x + threadIdx.x) * 8 >= norm.width) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) values[part][j] = (values[part][j] - mean) * scale * gains[part][j] + shifts[part][j];
    }
}

// This thread's elements of a row.
template <int PARTS>
DEVICE void load_row(const T* x, const Norm& norm, int row, float (&values)[PARTS][8]) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i < norm.width) load(x + (i64)row * norm.width + i, values[part]);
    }
}

// Hands the normed elements of each of the block's rows to `store`: of many rows a block has several, for which it reads
// the gains once.
template <bool CENTRED, int PARTS, class Store>
DEVICE void norm_rows_of(const T* x, const Norm& norm, int num_rows, Store store) {
    __shared__ float scratch[2][64];
    let_next_start();
    float gains[PARTS][8], shifts[PARTS][8] = {};
    load_gains(norm, gains, shifts);
    wait_for_previous();
    int turn = 0;
    float next[PARTS][8];
    // Where there are the registers for it, a row is on its way while the one before it is normed.
    const bool IS_EARLY = PARTS == 1;
    if (IS_EARLY && blockIdx.x < num_rows) load_row(x, norm, blockIdx.x, next);
    for (int row = blockIdx.x; row < num_rows; row += gridDim.x, turn ^= 1) {
        float values[PARTS][8];
        if constexpr (IS_EARLY) {
#pragma unroll
            for (int i = 0; i < 8; i++) values[0][i] = next[0][i];
            if (row + gridDim.x < num_rows) load_row(x, norm, row + gridDim.x, next);
        } else {
            load_row(x, norm, row, values);
        }
        norm_values<CENTRED>(norm, gains, shifts, values, scratch[turn]);
        store(row, values);
    }
}

template <bool CENTRED, class Store>
DEVICE void norm_rows(const T* x, const Norm& norm, int num_rows, Store store) {
    if (norm.width <= 8 * blockDim.x) {
        norm_rows_of<CENTRED, 1>(x, norm, num_rows, store);
    } else {
        norm_rows_of<CENTRED, MAX_PARTS>(x, norm, num_rows, store);
    }
}
