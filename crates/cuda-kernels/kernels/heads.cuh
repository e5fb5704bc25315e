#pragma once
// RMSNorm and LayerNorm of query and key heads (`qk_layernorm`), in place in the fused QKV, before it is rotated.

struct NormHeadsArgs {
    T* qkv;               // [rows, groups, QUERIES_PER_GROUP + 2, HEAD_DIM]
    const float* q_gain;  // [HEAD_DIM], or of each head, [heads, HEAD_DIM]
    const float* q_bias;  // the same, or null
    const float* k_gain;  // the same of key heads
    const float* k_bias;  // the same, or null
    int num_groups;
    int is_centred;
    float eps;
    int is_of_each;       // head: gains and biases
};

// A warp a head, 8 elements a lane, so that the order of a sum depends on the head alone. Grid: rows, then heads.
extern "C" __global__ void __launch_bounds__(256) norm_heads(NormHeadsArgs args) {
    let_next_start();
    const int normed_per_group = QUERIES_PER_GROUP + 1;
    int unit = (blockIdx.y * blockDim.x + threadIdx.x) / 32;
    if (unit >= args.num_groups * normed_per_group) return;
    int group = unit / normed_per_group;
    int member = unit - group * normed_per_group;
    bool is_key = member == QUERIES_PER_GROUP;
    int i = threadIdx.x % 32 * 8;
    bool is_inside = i < HEAD_DIM;
    const float* gain = is_key ? args.k_gain : args.q_gain;
    const float* bias = is_key ? args.k_bias : args.q_bias;
    i64 own = args.is_of_each ? (i64)(is_key ? group : group * QUERIES_PER_GROUP + member) * HEAD_DIM : 0;
    float gains[8] = {}, shifts[8] = {}, values[8] = {};
    if (is_inside) load(gain + own + i, gains);
    if (is_inside && bias) load(bias + own + i, shifts);
    wait_for_previous();
    T* head = args.qkv + (((i64)blockIdx.x * args.num_groups + group) * (QUERIES_PER_GROUP + 2) + member) * HEAD_DIM;
    if (is_inside) load(head + i, values);
    if (args.is_centred) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) sum += values[j];
        float mean = warp_sum(sum) / HEAD_DIM;
#pragma unroll
        for (int j = 0; j < 8; j++) values[j] = is_inside ? values[j] - mean : 0.0f;
    }
    float square = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) square += values[j] * values[j];
    float scale = rsqrtf(warp_sum(square) / HEAD_DIM + args.eps);
    if (!is_inside) return;
#pragma unroll
    for (int j = 0; j < 8; j++) values[j] = values[j] * scale * gains[j] + shifts[j];
    store(head + i, values);
}
