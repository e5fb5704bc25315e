#pragma once
// What becomes of a GEMM's sums, and how they leave the multiprocessor.

// V outputs as they are stored, of what is added to them `old`; `second`: the sums that multiply them, when gated.
// Everything is rounded where separate kernels would round it.
template <int V>
DEVICE void finish(const GemmArgs& args, int output, const float (&old)[V], const float (&second)[V], float (&sum)[V]) {
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (args.bias) sum[j] += to_float(args.bias[output + j]);
#if IS_GATED
        float factor = second[j];
        if (args.bias) factor += to_float(args.bias[args.num_out + output + j]);
        sum[j] = activated(rounded(sum[j]), ACTIVATION) * rounded(factor);
#elif ACTIVATION >= 0
        sum[j] = activated(rounded(sum[j]), ACTIVATION);
#else
        if (args.residual) sum[j] = rounded(sum[j]) + old[j];
#endif
    }
}

#define OUTPUTS (WEIGHT_ROWS / HALVES)
// Between rows, such that the rows of one store of a warp lie in different banks.
#define PITCH (WEIGHT_ROWS + (40 - WEIGHT_ROWS % 32) % 32)

// Stores V neighbouring outputs a thread, AT_ONCE of them in flight. `kept`: the sums, [rows, PITCH].
template <int V>
DEVICE void store_kept(const GemmArgs& args, const float* kept) {
    const int AT_ONCE = 4, VECTORS = OUTPUTS / V;
    int end = args.rows * VECTORS;
    for (int start = threadIdx.x; start < end; start += AT_ONCE * GROUP_THREADS) {
        float old[AT_ONCE][V];
        bool is_there[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int i = start + n * GROUP_THREADS, row = i / VECTORS, output = blockIdx.x * OUTPUTS + i % VECTORS * V;
            is_there[n] = i < end && output < args.num_out;
            if (is_there[n] && args.residual) load(args.residual + (i64)row * args.num_out + output, old[n]);
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            if (!is_there[n]) continue;
            int i = start + n * GROUP_THREADS, row = i / VECTORS, of_block = i % VECTORS * V, output = blockIdx.x * OUTPUTS + of_block;
            float sum[V], second[V];
            load(kept + row * PITCH + of_block, sum);
            if constexpr (IS_GATED) load(kept + row * PITCH + OUTPUTS + of_block, second);
            finish(args, output, old[n], second, sum);
            i64 at = (i64)row * args.num_out + output;
            if (args.is_f32) {
                store((float*)args.out + at, sum);
            } else {
                store((T*)args.out + at, sum);
            }
        }
    }
}

// A lane holds pairs of outputs of the lines 16 * warp + lane / 4 and that + 8. They go through shared memory, where the
// stages were: from registers the code is so long that to bring it to the multiprocessor takes longer than to run it.
DEVICE void store_all(const GemmArgs& args, float* kept, const float (&sums)[WEIGHT_ROWS / 2]) {
    int lane = threadIdx.x % 32, line = threadIdx.x / 32 * 16 + lane / 4;
    sync_group();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = line + 8 * half;
        if (row >= args.rows) break;
#pragma unroll
        for (int i = 0; i < WEIGHT_ROWS / 8; i++) {
            *(float2*)(kept + row * PITCH + 8 * i + lane % 4 * 2) = make_float2(sums[4 * i + 2 * half], sums[4 * i + 2 * half + 1]);
        }
    }
    sync_group();
    if (args.num_out % 2 == 0) {
        store_kept<2>(args, kept);
    } else {
        store_kept<1>(args, kept);
    }
}
