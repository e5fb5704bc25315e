#pragma once
// Token embedding.

// out[row] = table[token]. One block a row. A token outside the table makes the row NaN, which the sampler reports.
struct EmbedArgs {
    const int* tokens;
    const T* table;  // [num_tokens, width]
    T* out;          // [rows, width]
    int width;
    int num_tokens;
};

extern "C" __global__ void embed(EmbedArgs args) {
    int row = blockIdx.x;
    int token = args.tokens[row];
    bool is_bad = token < 0 || token >= args.num_tokens;
    for (int i = threadIdx.x * 8; i < args.width; i += blockDim.x * 8) {
        float values[8];
        if (is_bad) {
#pragma unroll
            for (int j = 0; j < 8; j++) values[j] = QUIET_NAN;
        } else {
            load(args.table + (i64)token * args.width + i, values);
        }
        store(args.out + (i64)row * args.width + i, values);
    }
}
