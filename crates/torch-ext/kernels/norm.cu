// RMSNorm and LayerNorm, alone or after adding to the residual stream.

#define MAX_PARTS 2

// One block a row, the row held in registers: 8 elements a thread and part. `width` is a multiple of 8 and at most
// 8 * blockDim.x * MAX_PARTS. With `residual`: residual = round(residual + x + x_bias), and that is normalised.
template <bool CENTRED>
DEVICE void norm_row(
    const T* x, const T* x_bias, T* residual, const float* gain, const float* bias, T* out, int width, float eps) {
    __shared__ float scratch[64];
    i64 start = (i64)blockIdx.x * width;
    float values[MAX_PARTS][8];
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= width) continue;
        load(x + start + i, values[part]);
        if (residual) {
            float old[8], shift[8] = {};
            load(residual + start + i, old);
            if (x_bias) load(x_bias + i, shift);
#pragma unroll
            for (int j = 0; j < 8; j++) values[part][j] = rounded(old[j] + (values[part][j] + shift[j]));
            store(residual + start + i, values[part]);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) sum += CENTRED ? values[part][j] : values[part][j] * values[part][j];
    }
    sum = block_sum(sum, scratch);
    float mean = 0.0f;
    if constexpr (CENTRED) {
        mean = sum / width;
        sum = 0.0f;
#pragma unroll
        for (int part = 0; part < MAX_PARTS; part++) {
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
    for (int part = 0; part < MAX_PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i >= width) continue;
        float gains[8], shifts[8] = {}, result[8];
        load(gain + i, gains);
        if (bias) load(bias + i, shifts);
#pragma unroll
        for (int j = 0; j < 8; j++) result[j] = (values[part][j] - mean) * scale * gains[j] + shifts[j];
        store(out + start + i, result);
    }
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm(
    const T* x, const T* x_bias, T* residual, const float* gain, const float* bias, T* out, int width, float eps) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    norm_row<false>(x, x_bias, residual, gain, bias, out, width, eps);
}

extern "C" __global__ void __launch_bounds__(1024) layer_norm(
    const T* x, const T* x_bias, T* residual, const float* gain, const float* bias, T* out, int width, float eps) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    norm_row<true>(x, x_bias, residual, gain, bias, out, width, eps);
}
