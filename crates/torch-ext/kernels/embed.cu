// Token and position embedding.

// out[row] = round(round(table[token] + position_table[position]) * factor). One block a row; `width` = hidden size.
// A token or position outside its table makes the row NaN, which the sampler reports; a padding row is zeros.
extern "C" __global__ void embed(
    const int* tokens, const int* positions, const T* table, const T* position_table, T* out, int width, int num_tokens,
    int max_positions, float factor) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    int row = blockIdx.x;
    int token = tokens[row];
    int position = positions ? positions[row] : 0;
    bool is_padding = position < 0;
    bool is_bad = token < 0 || token >= num_tokens || (position_table && position >= max_positions);
    for (int i = (blockIdx.y * blockDim.x + threadIdx.x) * 8; i < width; i += gridDim.y * blockDim.x * 8) {
        float values[8];
        if (is_padding || is_bad) {
#pragma unroll
            for (int j = 0; j < 8; j++) values[j] = is_padding ? 0.0f : QUIET_NAN;
        } else {
            load(table + (i64)token * width + i, values);
            if (position_table) {
                float shift[8];
                load(position_table + (i64)position * width + i, shift);
#pragma unroll
                for (int j = 0; j < 8; j++) values[j] = rounded(values[j] + shift[j]);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) values[j] *= factor;
        }
        store(out + (i64)row * width + i, values);
    }
}
