#pragma once
// The sum of few rows. What is sent says by itself that it is there, so that nobody waits for a mark behind it: a number
// goes as the complement of its bits, and where nothing has come yet there are zeros. Whoever has read a number makes it
// zero again. Slots are used in turn as the others are, and the next number can only come when this launch has ended.

#include "exchange.cuh"
#include "normed.cuh"

DEVICE float* few_of(const Group& group, int of_rank, u32 epoch, int from) {
    return (float*)group.few[of_rank] + ((i64)(epoch % 2) * group.num_ranks + from) * group.few_elems;
}

// The complement of the NaN of all bits would be zero, which says that nothing has come: it goes as another NaN.
DEVICE u32 sent_as(float value) {
    u32 bits = __float_as_uint(value);
    return bits == 0xffffffff ? 0x80000000 : ~bits;
}

DEVICE void send_eight(float* to, const float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to + i), "r"(sent_as(values[i])),
                     "r"(sent_as(values[i + 1])), "r"(sent_as(values[i + 2])), "r"(sent_as(values[i + 3])) : "memory");
    }
}

// Whether all eight have come; then they are taken.
DEVICE bool take_eight(float* from, float (&values)[8]) {
    u32 words[8];
    bool has_come = true;
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[i]), "=r"(words[i + 1]), "=r"(words[i + 2]), "=r"(words[i + 3]) : "l"(from + i) : "memory");
    }
#pragma unroll
    for (int i = 0; i < 8; i++) has_come &= words[i] != 0;
    if (!has_come) return false;
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = __uint_as_float(~words[i]);
    ((uint4*)from)[0] = make_uint4(0, 0, 0, 0), ((uint4*)from)[1] = make_uint4(0, 0, 0, 0);
    return true;
}

// What a rank has sent. One that does not send it in time is given up.
DEVICE void wait_for_eight(const Group& group, u32 epoch, int rank, i64 at, float (&values)[8]) {
    float* from = few_of(group, group.rank, epoch, rank) + at;
    if (take_eight(from, values)) return;
    u64 started = now_ns();
    while (!take_eight(from, values)) {
        if (!has_lost(group.progress) && now_ns() - started <= PATIENCE_NS) continue;
        // Changes nothing where another one was given up before.
        give_up(group.progress, group.lost, rank);
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = 0.0f;
        return;
    }
}

DEVICE void add_eight(float (&to)[8], const float (&more)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) to[j] += more[j];
}

// Adds the sum of the `size` ranks that are beside those of this rank's sum in the tree: 1, 2 or 4. Which of two is added to
// which changes no bit.
DEVICE void add_beside(const Group& group, u32 epoch, int size, i64 at, float (&sum)[8]) {
    int first = group.rank / size * size ^ size;
    float beside[8], pair[8];
#pragma unroll 1
    for (int i = 0; i < size; i++) {
        float values[8];
        wait_for_eight(group, epoch, first + i, at, values);
        if (i % 2 == 1) add_eight(values, pair);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (i == 0 || i == 2) pair[j] = values[j];
            if (i < 2) beside[j] = values[j];
        }
        if (i == 3) add_eight(beside, values);
    }
    add_eight(sum, beside);
}

// The number of this launch, of which every block makes it count: all of them have read it before the last one does. The
// next launch waits for the end of this one.
DEVICE u32 begin_and_count(u64 progress) {
    __shared__ u32 of_block;
    if (threadIdx.x == 0) of_block = begin(progress);
    __syncthreads();
    u32 epoch = of_block;
    if (threadIdx.x == 0) count_block(progress, epoch);
    return epoch;
}

// (0 + 1) + (2 + 3) of up to four, from `first` on.
template <typename Load>
DEVICE void tree_of_four(int num, Load load, int first, float (&sum)[8]) {
    float right[3][8];
    load(first, sum);
#pragma unroll
    for (int i = 1; i < 4; i++) {
        if (i < num) load(first + i, right[i - 1]);
    }
    if (num > 1) add_eight(sum, right[0]);
    if (num > 2) add_eight(right[1], right[2]), add_eight(sum, right[1]);
}

// As own_sum, with all reads on their way at once.
DEVICE void own_sum_at_once(const ReduceArgs& args, i64 at, float (&sum)[8]) {
    const float* partials = (const float*)args.partials + at;
    auto load = [&](int i, float (&to)[8]) { load_shared(partials + i * args.partial_stride, to); };
    tree_of_four(min(args.num_partials, 4), load, 0, sum);
    if (args.num_partials <= 4) return;
    float right[8];
    tree_of_four(4, load, 4, right);
    add_eight(sum, right);
}

// As reduce_rows, for sums that every rank adds.
template <bool CENTRED, int PARTS>
DEVICE void reduce_few_rows(const ReduceArgs& args) {
    __shared__ float scratch[64];
    let_next_start();
    const Group& group = args.group;
    Norm norm = {(const float*)args.gain, (const float*)args.shift, args.width, args.eps};
    if (args.normed && threadIdx.x * 8 < args.width) prefetch(norm.gain + threadIdx.x * 8);
    wait_for_previous();
    u32 epoch = begin_and_count(group.progress);
    bool is_alone = group.num_ranks == 1 || has_lost(group.progress);
    for (int row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
        float sums[PARTS][8], values[PARTS][8];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i >= args.width) continue;
            i64 at = (i64)row * args.width + i;
            own_sum_at_once(args, at, sums[part]);
            for (int n = 1; n < group.num_ranks && !is_alone; n++) {
                int to = (group.rank + n) % group.num_ranks;
                send_eight(few_of(group, to, epoch, group.rank) + at, sums[part]);
            }
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i >= args.width) continue;
            i64 at = (i64)row * args.width + i;
            for (int size = 1; size < group.num_ranks && !is_alone; size *= 2) add_beside(group, epoch, size, at, sums[part]);
            add_to_residual(args, at, i, sums[part], values[part]);
        }
        if (!args.normed) continue;
        float gains[PARTS][8], shifts[PARTS][8] = {};
        load_gains(norm, gains, shifts);
        norm_values<CENTRED>(norm, gains, shifts, values, scratch);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = (part * blockDim.x + threadIdx.x) * 8;
            if (i < args.width) store((T*)args.normed + (i64)row * args.width + i, values[part]);
        }
        // The next row uses `scratch` again.
        __syncthreads();
    }
}
