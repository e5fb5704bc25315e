#pragma once
// Which experts a row goes through and what each counts: the rule of `crates/model-core/src/routing.rs`, in float32.

#define ROUTE_TOKENS 4 // of a block
#define ROUTE_WARPS 8

// The launcher passes one of these by number.
enum Score { SOFTMAX_OF_CHOSEN, SOFTMAX_OF_ALL, SIGMOID };

struct RouteArgs {
    const T* x;          // [rows, width]
    const float* router; // [num_experts, width]
    const float* bias;   // [num_experts], added to the scores that experts are chosen by, or null
    const float* gate;   // [width], of the shared expert, or null
    float* logits;       // [rows, num_experts]
    int* experts;        // [rows, topk], best first
    float* weights;      // [rows, topk]
    float* gates;        // [rows], the sigmoids of the shared expert's gate; null without one
    int rows;
    int width;           // a multiple of 8
    int num_experts;
    int topk;            // up to 32
    int score;
    float scaling;       // 1 for none
};

// One warp: the products of a weight with the rows of the block, in lanes of 8 neighbouring inputs.
DEVICE void route_dot(const RouteArgs& args, const T* x, const float* weight, float (&sums)[ROUTE_TOKENS]) {
#pragma unroll
    for (int token = 0; token < ROUTE_TOKENS; token++) sums[token] = 0.0f;
#pragma unroll 4
    for (int i = threadIdx.x % 32 * 8; i < args.width; i += 256) {
        float w[8];
        load(weight + i, w);
#pragma unroll
        for (int token = 0; token < ROUTE_TOKENS; token++) {
            float v[8];
            load(x + token * args.width + i, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sums[token] = fmaf(v[j], w[j], sums[token]);
        }
    }
#pragma unroll
    for (int token = 0; token < ROUTE_TOKENS; token++) sums[token] = warp_sum(sums[token]);
}

// One warp: the experts of a row. Of equal scores that of the lower expert counts as the larger.
DEVICE void choose_row(const RouteArgs& args, float* scores, int row) {
    int lane = threadIdx.x % 32;
    if (args.score == SOFTMAX_OF_ALL) {
        float max = NEG_INF, sum = 0.0f;
        for (int i = lane; i < args.num_experts; i += 32) max = fmaxf(max, scores[i]);
        for (int lanes = 16; lanes > 0; lanes /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, lanes));
        for (int i = lane; i < args.num_experts; i += 32) sum += scores[i] = expf(scores[i] - max);
        sum = warp_sum(sum);
        for (int i = lane; i < args.num_experts; i += 32) scores[i] /= sum;
    } else if (args.score == SIGMOID) {
        for (int i = lane; i < args.num_experts; i += 32) scores[i] = sigmoid(scores[i]);
    }
    __syncwarp();
    // Of slot `lane`.
    float mine = 0.0f;
    int expert = 0;
    u32 taken[16] = {};
    for (int slot = 0; slot < args.topk; slot++) {
        float best = NEG_INF;
        int at = args.num_experts;
        for (int part = 0, i = lane; i < args.num_experts; i += 32, part++) {
            float value = scores[i] + (args.bias ? args.bias[i] : 0.0f);
            bool is_taken = taken[part / 32] >> part % 32 & 1;
            if (!is_taken && (at == args.num_experts || value > best)) best = value, at = i;
        }
        for (int lanes = 16; lanes > 0; lanes /= 2) {
            float other = __shfl_xor_sync(0xffffffff, best, lanes);
            int other_at = __shfl_xor_sync(0xffffffff, at, lanes);
            bool is_there = other_at < args.num_experts;
            if (is_there && (at == args.num_experts || other > best || (!(best > other) && other_at < at))) best = other, at = other_at;
        }
        if (at % 32 == lane) taken[at / 32 / 32] |= 1u << at / 32 % 32;
        if (slot == lane) mine = scores[at], expert = at;
    }
    // Sums over slots are taken in their order by every lane.
    float max = NEG_INF, sum = 0.0f, power = mine;
    if (args.score == SOFTMAX_OF_CHOSEN) {
        for (int slot = 0; slot < args.topk; slot++) max = fmaxf(max, __shfl_sync(0xffffffff, mine, slot));
        power = expf(mine - max);
    }
    for (int slot = 0; slot < args.topk; slot++) sum += __shfl_sync(0xffffffff, power, slot);
    float weight = power;
    if (args.score == SOFTMAX_OF_CHOSEN) weight = power / sum;
    if (args.score == SIGMOID && args.topk > 1) weight = power / (sum + 1e-20f);
    if (lane < args.topk) {
        args.experts[(i64)row * args.topk + lane] = expert;
        args.weights[(i64)row * args.topk + lane] = weight * args.scaling;
    }
}

// Grid: rows in ROUTE_TOKENS, parts of the experts. Shared memory: T [ROUTE_TOKENS, width].
extern "C" __global__ void __launch_bounds__(32 * ROUTE_WARPS) route(RouteArgs args) {
    extern __shared__ uint4 shared[];
    T* x = (T*)shared;
    int first = blockIdx.x * ROUTE_TOKENS;
    const int ELEMS = sizeof(uint4) / sizeof(T); // that a thread copies at once
    let_next_start();
    wait_for_previous();
    for (int i = threadIdx.x * ELEMS; i < ROUTE_TOKENS * args.width; i += blockDim.x * ELEMS) {
        // Rows past the last one are computed as the last one, and not stored.
        int row = min(first + i / args.width, args.rows - 1);
        *(uint4*)(x + i) = *(const uint4*)(args.x + (i64)row * args.width + i % args.width);
    }
    __syncthreads();
    int warp = blockIdx.y * ROUTE_WARPS + threadIdx.x / 32;
    for (int expert = warp; expert < args.num_experts + (args.gate != nullptr); expert += gridDim.y * ROUTE_WARPS) {
        float sums[ROUTE_TOKENS];
        bool is_gate = expert == args.num_experts;
        route_dot(args, x, is_gate ? args.gate : args.router + (i64)expert * args.width, sums);
        int token = threadIdx.x % 32;
        if (token >= ROUTE_TOKENS || first + token >= args.rows) continue;
        float sum = token == 0 ? sums[0] : token == 1 ? sums[1] : token == 2 ? sums[2] : sums[3];
        if (is_gate) {
            args.gates[first + token] = sigmoid(sum);
        } else {
            args.logits[(i64)(first + token) * args.num_experts + expert] = sum;
        }
    }
}

// A warp a row. Shared memory: float [warps, num_experts].
extern "C" __global__ void choose(RouteArgs args) {
    extern __shared__ float all_scores[];
    int warp = threadIdx.x / 32, row = blockIdx.x * (blockDim.x / 32) + warp;
    float* scores = all_scores + warp * args.num_experts;
    let_next_start();
    wait_for_previous();
    if (row >= args.rows) return;
    for (int i = threadIdx.x % 32; i < args.num_experts; i += 32) scores[i] = args.logits[(i64)row * args.num_experts + i];
    __syncwarp();
    choose_row(args, scores, row);
}
