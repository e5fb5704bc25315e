// Rows to FP8 (e4m3) with a scale each, by the largest of its elements: `q = round(x * (448 / max))`, `scale = max / 448`.
// A row without anything is zeros with the scale of SMALLEST_MAX. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.
//
// A block has a row, or several behind a norm. What that would store in T is rounded to it first, so that a row has the
// same bits as through memory.

#include "common.cuh"
#include "e4m3.cuh"
#include "normed.cuh"

#define SMALLEST_MAX 0x1p-100f // below, 448 / max would leave the range of float32

// Where the rows go.
struct Fp8Rows {
    u8* values;     // e4m3 [rows, width]
    float* scales;  // [rows]
};

// The largest size of an element of a block's threads; NaN if any is, whose bits are above those of all numbers.
DEVICE float block_max(u32 bits, u32* scratch) {
    int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
    u32 max = __reduce_max_sync(0xffffffff, bits);
    if (lane == 0) scratch[threadIdx.x / 32] = max;
    __syncthreads();
    return __uint_as_float(__reduce_max_sync(0xffffffff, lane < num_warps ? scratch[lane] : 0));
}

DEVICE void take_max(const float (&values)[8], u32* max) {
#pragma unroll
    for (int j = 0; j < 8; j++) *max = ::max(*max, __float_as_uint(fabsf(values[j])));
}

// What the elements of a row of the block are multiplied by; its scale is stored. Behind another call there must be a barrier.
DEVICE float factor_of(u32 max, const Fp8Rows& out, int row) {
    __shared__ u32 scratch[32];
    float largest = block_max(max, scratch);
    if (largest < SMALLEST_MAX) largest = SMALLEST_MAX;
    if (threadIdx.x == 0) out.scales[row] = largest / LARGEST_E4M3;
    return LARGEST_E4M3 / largest;
}

// Eight elements of a row from `i` on.
DEVICE void store_fp8(const Fp8Rows& out, int width, int row, int i, const float (&values)[8], float factor) {
    u32 words[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float* four = values + 4 * k;
        words[k] = e4m3_pair(four[0] * factor, four[1] * factor) | e4m3_pair(four[2] * factor, four[3] * factor) << 16;
    }
    *(uint2*)(out.values + (i64)row * width + i) = make_uint2(words[0], words[1]);
}

// A row of which each thread has 8 elements a part, rounded to T.
template <int PARTS>
DEVICE void store_row(const Fp8Rows& out, int width, int row, float (&values)[PARTS][8]) {
    u32 max = 0;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        if ((part * blockDim.x + threadIdx.x) * 8 >= width) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) values[part][j] = rounded(values[part][j]);
        take_max(values[part], &max);
    }
    float factor = factor_of(max, out, row);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        int i = (part * blockDim.x + threadIdx.x) * 8;
        if (i < width) store_fp8(out, width, row, i, values[part], factor);
    }
}

// `width` is a multiple of 8.
struct QuantizeArgs {
    const T* x;  // [rows, width]
    Fp8Rows out;
    int width;
};

extern "C" __global__ void __launch_bounds__(1024) quantize_rows(QuantizeArgs args) {
    let_next_start();
    wait_for_previous();
    const T* row = args.x + (i64)blockIdx.x * args.width;
    u32 max = 0;
    float values[8];
    for (int i = threadIdx.x * 8; i < args.width; i += blockDim.x * 8) {
        load(row + i, values);
        take_max(values, &max);
    }
    float factor = factor_of(max, args.out, blockIdx.x);
    for (int i = threadIdx.x * 8; i < args.width; i += blockDim.x * 8) {
        load(row + i, values);
        store_fp8(args.out, args.width, blockIdx.x, i, values, factor);
    }
}

struct NormFp8Args {
    const T* x;  // [rows, width]
    Norm norm;
    Fp8Rows out;
    int rows;
};

struct StoreNormedFp8 {
    const NormFp8Args& args;

    template <int PARTS>
    DEVICE void operator()(int row, float (&values)[PARTS][8]) const {
        store_row(args.out, args.norm.width, row, values);
    }
};

template <bool CENTRED>
DEVICE void norm_all_fp8(const NormFp8Args& args) {
    norm_rows<CENTRED>(args.x, args.norm, args.rows, StoreNormedFp8{args});
}

extern "C" __global__ void __launch_bounds__(1024) rms_norm_fp8(NormFp8Args args) { norm_all_fp8<false>(args); }

extern "C" __global__ void __launch_bounds__(1024) layer_norm_fp8(NormFp8Args args) { norm_all_fp8<true>(args); }
