// What tensor-parallel ranks exchange: partial sums, and columns of logits. Each rank writes into memory of the others
// (over NVLink, or within one GPU), so nothing is asked for and waited for twice.
//
// Every rank has an inbox with two slots, which launches use in turn, and a part of each for every rank. A launch with
// number `epoch` pushes into slot `epoch % 2`, marks block by block that it is there, waits for the same blocks of the
// others, and adds. A slot is written again two launches later: by then every rank has ended the launch between, before
// which the others had read the slot. All ranks launch the same grids over the same shapes in the same order.
//
// A small sum goes to every rank, and each adds all of them (few rows: reduce_few.cuh). Of a large one each rank adds some
// rows and sends the others what came out, which are fewer bytes. The bits are the same.

#include "exchange.cuh"
#include "normed.cuh"

#define MAX_RANKS 8
#define MAX_BLOCKS 128

// Mirrors `GroupArgs` in reduce.rs.
struct Group {
    u64 inbox[MAX_RANKS];  // float32[2][num_ranks][slot_elems] of each rank
    u64 few[MAX_RANKS];    // float32[2][num_ranks][few_elems] of each rank, for sums of few rows; none in the host's memory
    u64 marks[MAX_RANKS];  // u32[num_ranks][MAX_BLOCKS] of each rank: where each rank is, by rank and block
    u64 progress;          // of this rank
    u64 lost;              // u32 of the host: 1 + the rank that did not come
    i64 slot_elems;
    i64 few_elems;
    int num_ranks;
    int rank;
};

DEVICE float* part_of(const Group& group, int of_rank, u32 epoch, int from) {
    return (float*)group.inbox[of_rank] + ((i64)(epoch % 2) * group.num_ranks + from) * group.slot_elems;
}

// What this block has pushed is there for the others, and theirs for it. `round`: 0 or 1, in turn, where a launch meets
// twice.
DEVICE void meet(const Group& group, u32 epoch, int round) {
    __threadfence_system();
    __syncthreads();
    int other = threadIdx.x;
    if (other < group.num_ranks && other != group.rank && !has_lost(group.progress)) {
        u32 value = 2 * epoch + round;
        mark(group.marks[other] + 4 * (group.rank * MAX_BLOCKS + blockIdx.x), value);
        wait_for_mark(group.marks[group.rank] + 4 * (other * MAX_BLOCKS + blockIdx.x), value, group.progress, group.lost, other);
    }
    __syncthreads();
}

// Mirrors `ReduceArgs` in reduce.rs.
struct ReduceArgs {
    Group group;
    u64 partials;  // float32[num_partials][num_rows][width], each `partial_stride` behind the one before
    u64 residual;  // T[num_rows][width]
    u64 bias;      // float32[width] or none
    u64 normed;    // T[num_rows][width] or none
    u64 gain;      // float32[width], where there is a norm
    u64 shift;     // float32[width] or none
    i64 partial_stride;
    int num_partials;
    int num_rows;
    int width;     // a multiple of 8
    int is_large;  // each rank adds some of the rows
    float eps;
    int reserved;
};

// What others have written, from the cache that all multiprocessors share.
DEVICE void load_shared(const float* from, float (&to)[8]) {
    float4 a = __ldcg((const float4*)from), b = __ldcg((const float4*)from + 1);
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

DEVICE void load_shared(const u16* from, float (&to)[8]) {
    uint4 raw = __ldcg((const uint4*)from);
    u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) to[2 * i] = to_float((u16)words[i]), to[2 * i + 1] = to_float((u16)(words[i] >> 16));
}

// ((0 + 1) + (2 + 3)) + ...: 1, 2, 4 or 8 of them, eight numbers each. In a loop, since its code is fetched for every launch.
template <typename Load>
DEVICE void tree(int num, Load load, float (&sum)[8]) {
    load(0, sum);
    float left[2][8]; // sums of 2 and of 4 that wait for those beside them
#pragma unroll 1
    for (int i = 0; i + 1 < num; i += 2) {
        float right[8];
        load(i + 1, right);
        if (i > 0) load(i, sum);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += right[j];
        bool goes_up = true;
#pragma unroll
        for (int level = 0; level < 2; level++) {
            bool is_right = i >> (level + 1) & 1;
            if (goes_up && is_right) {
#pragma unroll
                for (int j = 0; j < 8; j++) sum[j] = left[level][j] + sum[j];
            } else if (goes_up) {
#pragma unroll
                for (int j = 0; j < 8; j++) left[level][j] = sum[j];
                goes_up = false;
            }
        }
    }
}

// What this rank's pieces add up to, of 8 elements from `at` on.
DEVICE void own_sum(const ReduceArgs& args, i64 at, float (&sum)[8]) {
    const float* partials = (const float*)args.partials + at;
    tree(args.num_partials, [&](int i, float (&to)[8]) { load_shared(partials + i * args.partial_stride, to); }, sum);
}

// What all ranks have pushed.
DEVICE void sum_of_all(const ReduceArgs& args, u32 epoch, i64 at, float (&sum)[8]) {
    const Group& group = args.group;
    const float* first = part_of(group, group.rank, epoch, 0) + at;
    tree(group.num_ranks, [&](int from, float (&to)[8]) { load_shared(first + from * group.slot_elems, to); }, sum);
}

// residual += sum + bias, rounded once; `values` is the residual behind it.
DEVICE void add_to_residual(const ReduceArgs& args, i64 at, int i, const float (&sum)[8], float (&values)[8]) {
    float bias[8] = {};
    if (args.bias) load((const float*)args.bias + i, bias);
    T* residual = (T*)args.residual + at;
    load(residual, values);
#pragma unroll
    for (int j = 0; j < 8; j++) values[j] = rounded(values[j] + (args.bias ? sum[j] + bias[j] : sum[j]));
    store(residual, values);
}

// Of this block's rows: number k is added by rank k % num_ranks, where each adds some.
template <int PARTS>
DEVICE void push_sums(const ReduceArgs& args, u32 epoch) {
    const Group& group = args.group;
    int owner = 0;
    for (int row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i >= args.width) continue;
            i64 at = (i64)row * args.width + i;
            float sum[8];
            own_sum(args, at, sum);
            for (int n = 0; n < group.num_ranks; n++) {
                int to = (group.rank + n) % group.num_ranks;
                if (!args.is_large || to == owner) store(part_of(group, to, epoch, group.rank) + at, sum);
            }
        }
        if (++owner == group.num_ranks) owner = 0;
    }
}

// Adds this rank's rows and sends them to the others, to where the sender's sums of those rows would be, which go nowhere.
template <int PARTS>
DEVICE void add_own_rows(const ReduceArgs& args, u32 epoch) {
    const Group& group = args.group;
    for (int row = blockIdx.x + group.rank * gridDim.x; row < args.num_rows; row += group.num_ranks * gridDim.x) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i >= args.width) continue;
            i64 start = (i64)row * args.width;
            float sum[8], values[8];
            sum_of_all(args, epoch, start + i, sum);
            add_to_residual(args, start + i, i, sum, values);
            for (int n = 1; n < group.num_ranks; n++) {
                int to = (group.rank + n) % group.num_ranks;
                store((T*)(part_of(group, to, epoch, group.rank) + start) + i, values);
            }
        }
    }
}

// residual += (the partial sums of all ranks in one tree) + bias, rounded once; normed = norm(residual), where asked for.
// A thread has the elements of a row that it has in normed.cuh, so the norm's bits are those of a kernel of its own.
template <bool CENTRED, int PARTS>
DEVICE void reduce_rows(const ReduceArgs& args) {
    __shared__ float scratch[64];
    let_next_start();
    wait_for_previous();
    const Group& group = args.group;
    u32 epoch = begin(group.progress);
    if (group.num_ranks > 1) {
        push_sums<PARTS>(args, epoch);
        meet(group, epoch, 0);
        if (args.is_large) {
            add_own_rows<PARTS>(args, epoch);
            meet(group, epoch, 1);
        }
    }
    int owner = 0;
    for (int row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
        i64 start = (i64)row * args.width;
        float values[PARTS][8];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i >= args.width) continue;
            if (args.is_large && owner == group.rank) {
                load((const T*)args.residual + start + i, values[part]);
            } else if (args.is_large) {
                load_shared((const T*)(part_of(group, group.rank, epoch, owner) + start) + i, values[part]);
                store((T*)args.residual + start + i, values[part]);
            } else {
                float sum[8];
                if (group.num_ranks > 1) sum_of_all(args, epoch, start + i, sum);
                else own_sum(args, start + i, sum);
                add_to_residual(args, start + i, i, sum, values[part]);
            }
        }
        if (++owner == group.num_ranks) owner = 0;
        if (!args.normed) continue;
        Norm norm = {(const float*)args.gain, (const float*)args.shift, args.width, args.eps};
        float gains[PARTS][8], shifts[PARTS][8] = {};
        load_gains(norm, gains, shifts);
        norm_values<CENTRED>(norm, gains, shifts, values, scratch);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i < args.width) store((T*)args.normed + start + i, values[part]);
        }
        // The next row uses `scratch` again.
        __syncthreads();
    }
    end(group.progress, epoch);
}

#define REDUCE(name, centred, parts) \
    extern "C" __global__ void __launch_bounds__(1024) name(const __grid_constant__ ReduceArgs args) { reduce_rows<centred, parts>(args); }

// For rows that the threads of a block hold at once, and for wider ones; without a norm any of them does.
REDUCE(reduce_rms_norm, false, 1)
REDUCE(reduce_layer_norm, true, 1)
REDUCE(reduce_rms_norm_wide, false, 2)
REDUCE(reduce_layer_norm_wide, true, 2)

#include "reduce_few.cuh"

#define REDUCE_FEW(name, centred, parts) \
    extern "C" __global__ void __launch_bounds__(1024) name(const __grid_constant__ ReduceArgs args) { reduce_few_rows<centred, parts>(args); }

REDUCE_FEW(reduce_few_rms_norm, false, 1)
REDUCE_FEW(reduce_few_layer_norm, true, 1)
REDUCE_FEW(reduce_few_rms_norm_wide, false, 2)
REDUCE_FEW(reduce_few_layer_norm_wide, true, 2)

// Mirrors `GatherColumnsArgs` in reduce.rs.
struct GatherColumnsArgs {
    Group group;
    u64 mine;  // float32[num_rows][columns of this rank]
    u64 out;   // float32[num_rows][all columns]
    i64 num_rows;
    i64 starts[MAX_RANKS + 1];  // of each rank's columns
};

// The columns of all ranks side by side.
extern "C" __global__ void __launch_bounds__(512) gather_columns(const __grid_constant__ GatherColumnsArgs args) {
    const Group& group = args.group;
    wait_for_previous();
    u32 epoch = begin(group.progress);
    i64 step = (i64)gridDim.x * blockDim.x, first = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 own_columns = args.starts[group.rank + 1] - args.starts[group.rank];
    const float* mine = (const float*)args.mine;
    for (i64 i = first; i < args.num_rows * own_columns; i += step) {
        float value = mine[i];
        for (int k = 1; k < group.num_ranks; k++) {
            int other = (group.rank + k) % group.num_ranks;
            part_of(group, other, epoch, group.rank)[i] = value;
        }
    }
    meet(group, epoch, 0);
    i64 all_columns = args.starts[group.num_ranks];
    float* out = (float*)args.out;
    for (int from = 0; from < group.num_ranks; from++) {
        i64 columns = args.starts[from + 1] - args.starts[from];
        const float* part = from == group.rank ? mine : part_of(group, group.rank, epoch, from);
        // The same elements as this block has pushed or been pushed: those that its mark speaks of.
        for (i64 i = first; i < args.num_rows * columns; i += step) {
            i64 row = i / columns, column = i % columns;
            out[row * all_columns + args.starts[from] + column] = __ldcg(part + i);
        }
    }
    end(group.progress, epoch);
}
