#pragma once
// The residual stream plus what a row's experts made of it, rounded once.

struct JoinArgs {
    const float* outputs; // [num_places, width]
    const float* weights; // [rows, topk]
    const int* where;     // [rows, topk]: where a row and slot lies
    const float* shared;  // [rows, width]: what the shared expert made, or null
    const float* gates;   // [rows], or null
    T* residual;          // [rows, width], added to
    int width;            // a multiple of 8
    int topk;
};

// Grid: rows, then parts of a row of 8 elements a thread.
extern "C" __global__ void join(JoinArgs args) {
    int row = blockIdx.x, i = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    let_next_start();
    wait_for_previous();
    if (i >= args.width) return;
    float sum[8], values[8];
    for (int slot = 0; slot < args.topk; slot++) {
        i64 at = (i64)row * args.topk + slot;
        float weight = args.weights[at];
        load(args.outputs + (i64)args.where[at] * args.width + i, values);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            // Rounded product by product, as on the CPU.
            float product = __fmul_rn(values[j], weight);
            sum[j] = slot == 0 ? product : __fadd_rn(sum[j], product);
        }
    }
    if (args.shared) {
        float gate = args.gates ? args.gates[row] : 1.0f;
        load(args.shared + (i64)row * args.width + i, values);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] = __fadd_rn(sum[j], __fmul_rn(values[j], gate));
    }
    load(args.residual + (i64)row * args.width + i, values);
#pragma unroll
    for (int j = 0; j < 8; j++) values[j] = __fadd_rn(values[j], sum[j]);
    store(args.residual + (i64)row * args.width + i, values);
}
