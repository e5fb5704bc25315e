#pragma once
// Token and position embedding.

// out[row] = round(round(table[token] + position_table[position]) * factor). One block a row. A
// token or position outside its table makes the row NaN, which the sampler reports; a padding row is zeros.
struct EmbedArgs {
    const int* tokens;
    const int* positions;     // or null
    const T* table;           // [num_tokens, width]
    const T* position_table;  // [max_positions, width], or null
    T* out;                   // [rows, width]
    int width;
    int num_tokens;
    int max_positions;
    float factor;
};

extern "C" __global__ void embed(EmbedArgs args) {
    int row = blockIdx.x;
    int token = args.tokens[row];
    int position = args.positions ? args.positions[row] : 0;
    bool is_padding = position < 0;
    bool is_bad = token < 0 || token >= args.num_tokens || (args.position_table && position >= args.max_positions);
    for (int i = threadIdx.x * 8; i < args.width; i += blockDim.x * 8) {
        float values[8];
        if (is_padding || is_bad) {
#pragma unroll
            for (int j = 0; j < 8; j++) values[j] = is_padding ? 0.0f : QUIET_NAN;
        } else {
            load(args.table + (i64)token * args.width + i, values);
            if (args.position_table) {
                float shift[8];
                load(args.position_table + (i64)position * args.width + i, shift);
#pragma unroll
                for (int j = 0; j < 8; j++) values[j] = rounded(values[j] + shift[j]);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) values[j] *= args.factor;
        }
        store(args.out + (i64)row * args.width + i, values);
    }
}
