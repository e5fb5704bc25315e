// Rows to FP8 (e4m3) with a scale each, by the largest of its elements: `q = round(x * (448 / max))`, `scale = max / 448`.
// A row without anything is zeros with the scale of SMALLEST_MAX. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.

#include "common.cuh"
#include "e4m3.cuh"

#define SMALLEST_MAX 0x1p-100f // below, 448 / max would leave the range of float32

// One block a row. `width` is a multiple of 8.
struct QuantizeArgs {
    const T* x;     // [rows, width]
    u8* out;        // e4m3 [rows, width]
    float* scales;  // [rows]
    int width;
};

// The largest size of an element of a block's threads; NaN if any is, whose bits are above those of all numbers.
DEVICE float block_max(float size, u32* scratch) {
    int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
    u32 max = __reduce_max_sync(0xffffffff, __float_as_uint(size));
    if (lane == 0) scratch[threadIdx.x / 32] = max;
    __syncthreads();
    return __uint_as_float(__reduce_max_sync(0xffffffff, lane < num_warps ? scratch[lane] : 0));
}

extern "C" __global__ void __launch_bounds__(1024) quantize_rows(QuantizeArgs args) {
    __shared__ u32 scratch[32];
    let_next_start();
    wait_for_previous();
    const T* row = args.x + (i64)blockIdx.x * args.width;
    u32 max = 0;
    for (int i = threadIdx.x * 8; i < args.width; i += blockDim.x * 8) {
        float values[8];
        load(row + i, values);
#pragma unroll
        for (int j = 0; j < 8; j++) max = ::max(max, __float_as_uint(fabsf(values[j])));
    }
    float largest = block_max(__uint_as_float(max), scratch);
    if (largest < SMALLEST_MAX) largest = SMALLEST_MAX;
    if (threadIdx.x == 0) args.scales[blockIdx.x] = largest / LARGEST_E4M3;
    float factor = LARGEST_E4M3 / largest;
    for (int i = threadIdx.x * 8; i < args.width; i += blockDim.x * 8) {
        float values[8];
        load(row + i, values);
        u32 words[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float* four = values + 4 * k;
            words[k] = e4m3_pair(four[0] * factor, four[1] * factor) | e4m3_pair(four[2] * factor, four[3] * factor) << 16;
        }
        *(uint2*)(args.out + (i64)blockIdx.x * args.width + i) = make_uint2(words[0], words[1]);
    }
}
