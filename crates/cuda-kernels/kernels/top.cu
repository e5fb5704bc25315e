// The most likely tokens of each row by its raw logits, with their log-probabilities: what the reference sampler of the
// sampling crate gives, ties by id. One block a row, which reads it once for the sum and once for each token.

#include "common.cuh"
#include "numbers.cuh"

struct TopArgs {
    const float* logits;     // [num_logits_rows, logits_stride]
    const int* logits_rows;  // every `rows_stride`-th word: the row of the logits of each block; null: its own number
    int* out;                // [num_rows, 2 * num_top]: ids, below 0 for none, each with the bits of its log-probability
    i64 logits_stride;
    int rows_stride;
    int num_logits_rows;
    int vocab_size;
    int num_top;
};

#define ALL_LANES 0xffffffff

// The largest number of the block, for all its threads. `scratch`: a number for each warp.
DEVICE u64 block_max(u64 value, u64* scratch) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, value, lanes);
        if (other > value) value = other;
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    u64 max = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) max = scratch[warp] > max ? scratch[warp] : max;
    __syncthreads();
    return max;
}

DEVICE u64 block_total(u64 value, u64* scratch) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(ALL_LANES, value, lanes);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    u64 sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += scratch[warp];
    __syncthreads();
    return sum;
}

// A larger value is a larger number, and of equal values the lower id is.
DEVICE u64 rank_of(float value, int id) { return (u64)key_of(value) << 32 | (u32)~id; }

extern "C" __global__ void top_tokens(TopArgs args) {
    __shared__ u64 scratch[32];
    int row = args.logits_rows ? args.logits_rows[(i64)blockIdx.x * args.rows_stride] : blockIdx.x;
    int* out = args.out + (i64)blockIdx.x * 2 * args.num_top;
    if (row < 0 || row >= args.num_logits_rows) return;
    const float* logits = args.logits + row * args.logits_stride;
    u64 last = ~0ull;
    float max = 0.0f;
    double log_sum = 0.0;
    for (int nth = 0; nth < args.num_top; nth++) {
        u64 best = 0;
        for (int id = threadIdx.x; id < args.vocab_size; id += blockDim.x) {
            u64 rank = rank_of(logits[id], id);
            if (rank < last && rank > best) best = rank;
        }
        last = best = block_max(best, scratch);
        float value = value_of((u32)(best >> 32));
        if (nth == 0) {
            max = value;
            u64 sum = 0;
            for (int id = threadIdx.x; id < args.vocab_size; id += blockDim.x) sum += weight_of(logits[id], max);
            double total = __dmul_rn(__ull2double_rn(block_total(sum, scratch)), 1.0 / (double)(1ull << WEIGHT_BITS));
            log_sum = log(total);
        }
        if (threadIdx.x != 0) continue;
        bool is_none = best == 0 || !(value > NEG_INF);
        out[2 * nth] = is_none ? -1 : (int)~(u32)best;
        out[2 * nth + 1] = __float_as_int((float)((double)__fsub_rn(value, max) - log_sum));
    }
}
