#pragma once
// What a row's experts made of it, added up: to the residual stream and rounded once, or for each piece of their inputs.

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

// The sum over a row's slots in their order, of 8 elements from the `i`th.
DEVICE void sum_slots(const float* outputs, const float* weights, const int* where, int row, int topk, int width, int i, float (&sum)[8]) {
    float values[8];
    for (int slot = 0; slot < topk; slot++) {
        i64 at = (i64)row * topk + slot;
        float weight = weights[at];
        load(outputs + (i64)where[at] * width + i, values);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            // Rounded product by product, as on the CPU.
            float product = __fmul_rn(values[j], weight);
            sum[j] = slot == 0 ? product : __fadd_rn(sum[j], product);
        }
    }
}

// Grid: rows, then parts of a row of 8 elements a thread.
extern "C" __global__ void join(JoinArgs args) {
    int row = blockIdx.x, i = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    let_next_start();
    wait_for_previous();
    if (i >= args.width) return;
    float sum[8], values[8];
    sum_slots(args.outputs, args.weights, args.where, row, args.topk, args.width, i, sum);
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

struct JoinPiecesArgs {
    const float* outputs; // [num_pieces, num_places, width]
    const float* weights; // [rows, topk]
    const int* where;     // [rows, topk]: where a row and slot lies
    float* partials;      // [num_pieces, rows, width]
    int width;            // a multiple of 8
    int topk;
};

// Grid: rows, parts of a row of 8 elements a thread, pieces.
extern "C" __global__ void join_pieces(JoinPiecesArgs args) {
    int row = blockIdx.x, i = (blockIdx.y * blockDim.x + threadIdx.x) * 8, piece = blockIdx.z;
    let_next_start();
    wait_for_previous();
    if (i >= args.width) return;
    float sum[8];
    const float* outputs = args.outputs + (i64)piece * gridDim.x * args.topk * args.width;
    sum_slots(outputs, args.weights, args.where, row, args.topk, args.width, i, sum);
    store(args.partials + ((i64)piece * gridDim.x + row) * args.width + i, sum);
}
