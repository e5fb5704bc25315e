// What tensor-parallel ranks exchange: partial sums, and columns of logits. Each rank writes into memory of the others
// (over NVLink, or within one GPU), so nothing is asked for and waited for twice.
//
// Every rank has an inbox with two slots, which launches use in turn, and a part of each for every rank. A launch with
// number `epoch` pushes into slot `epoch % 2`, marks block by block that it is there, waits for the same blocks of the
// others, and adds. A slot is written again two launches later: by then every rank has ended the launch between, before
// which the others had read the slot. All ranks launch the same grids over the same shapes in the same order.

#include "common.cuh"

#define MAX_RANKS 8
#define MAX_BLOCKS 128
// A rank that does not come within this time is given up: 30 s.
#define PATIENCE_NS 30000000000ull

// Mirrors `GroupArgs` in reduce.rs.
struct Group {
    u64 inbox[MAX_RANKS];  // float32[2][num_ranks][slot_elems] of each rank
    u64 marks[MAX_RANKS];  // u32[num_ranks][MAX_BLOCKS] of each rank: the last launch that has come, by rank and block
    u64 state;             // u32[2] of this rank: launches so far, blocks that have ended
    u64 lost;              // u32 of the host: 1 + the rank that did not come
    i64 slot_elems;
    int num_ranks;
    int rank;
};

DEVICE u64 now_ns() {
    u64 time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}

DEVICE float* part_of(const Group& group, int of_rank, u32 epoch, int from) {
    return (float*)group.inbox[of_rank] + ((i64)(epoch % 2) * group.num_ranks + from) * group.slot_elems;
}

DEVICE u32 begin(const Group& group) { return *(volatile u32*)group.state + 1; }

// What this block has pushed is there for the others, and theirs for it.
DEVICE void meet(const Group& group, u32 epoch) {
    __threadfence_system();
    __syncthreads();
    int other = threadIdx.x;
    if (other < group.num_ranks && other != group.rank) {
        u32* theirs = (u32*)group.marks[other] + group.rank * MAX_BLOCKS + blockIdx.x;
        asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(theirs), "r"(epoch) : "memory");
        const u32* mine = (const u32*)group.marks[group.rank] + other * MAX_BLOCKS + blockIdx.x;
        u64 started = now_ns();
        u32 seen;
        while (true) {
            asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(mine) : "memory");
            if ((int)(seen - epoch) >= 0) break;
            if (now_ns() - started > PATIENCE_NS) {
                *(volatile u32*)group.lost = 1 + other;
                break;
            }
        }
    }
    __syncthreads();
}

DEVICE void end(const Group& group, u32 epoch) {
    __syncthreads();
    if (threadIdx.x > 0) return;
    u32* state = (u32*)group.state;
    if (atomicAdd(state + 1, 1) == gridDim.x - 1) {
        state[1] = 0;
        __threadfence();
        *(volatile u32*)state = epoch;
    }
}

DEVICE float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// ((0 + 1) + (2 + 3)) + ...: a power of two of them.
template <int N, typename Load>
DEVICE float4 tree(int num, Load load) {
    float4 sums[N];
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < num) sums[i] = load(i);
#pragma unroll
    for (int width = 1; width < N; width *= 2)
#pragma unroll
        for (int i = 0; i + width < N; i += 2 * width)
            if (i + width < num) sums[i] = add(sums[i], sums[i + width]);
    return sums[0];
}

// Mirrors `ReduceArgs` in reduce.rs.
struct ReduceArgs {
    Group group;
    u64 partials;  // float32[num_partials][num_elems], each `partial_stride` behind the one before
    u64 residual;  // T[num_elems]
    u64 bias;      // float32[width] or none
    i64 num_elems;
    i64 partial_stride;
    int num_partials;
    int width;
};

// residual += (the partial sums of all ranks in one tree) + bias, rounded once.
extern "C" __global__ void __launch_bounds__(512) reduce_add(const __grid_constant__ ReduceArgs args) {
    const Group& group = args.group;
    wait_for_previous();
    u32 epoch = begin(group);
    i64 num_vectors = args.num_elems / 4, step = (i64)gridDim.x * blockDim.x;
    i64 first = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    const float* partials = (const float*)args.partials;
    float* own = part_of(group, group.rank, epoch, group.rank);
    for (i64 v = first; v < num_vectors; v += step) {
        float4 sum = tree<8>(args.num_partials, [&](int i) { return __ldcg((const float4*)(partials + i * args.partial_stride) + v); });
        ((float4*)own)[v] = sum;
        for (int i = 1; i < group.num_ranks; i++) {
            int other = (group.rank + i) % group.num_ranks;
            ((float4*)part_of(group, other, epoch, group.rank))[v] = sum;
        }
    }
    if (group.num_ranks > 1) meet(group, epoch);
    T* residual = (T*)args.residual;
    for (i64 v = first; v < num_vectors; v += step) {
        float4 sum = tree<MAX_RANKS>(group.num_ranks, [&](int from) { return __ldcg((const float4*)part_of(group, group.rank, epoch, from) + v); });
        if (args.bias) sum = add(sum, ((const float4*)args.bias)[v % (args.width / 4)]);
        float before[4] = {to_float(residual[4 * v]), to_float(residual[4 * v + 1]), to_float(residual[4 * v + 2]), to_float(residual[4 * v + 3])};
        from_float(before[0] + sum.x, residual + 4 * v);
        from_float(before[1] + sum.y, residual + 4 * v + 1);
        from_float(before[2] + sum.z, residual + 4 * v + 2);
        from_float(before[3] + sum.w, residual + 4 * v + 3);
    }
    end(group, epoch);
}

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
    u32 epoch = begin(group);
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
    meet(group, epoch);
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
    end(group, epoch);
}
