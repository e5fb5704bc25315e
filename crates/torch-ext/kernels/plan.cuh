#pragma once
// What the decode attention of one step has to do, found once and used by all layers.

// The keys of a row are cut at multiples of SPLIT_KEYS. An item is one such split of one row, or, where the split lies
// wholly inside blocks that neighbouring rows share, of up to ROWS_PER_SET of them. The bits of a row never depend on
// which: rows are columns of the same matrix products. Where there is work enough, an item is all splits of a row one after
// the other, with the same bits, which saves what is kept of each for joining them.

struct PlanArgs {
    const int* positions;      // [rows], below 0: no work
    const int* block_tables;   // [rows, table_width]
    const int2* prefix_groups; // [rows] of (first row of the group, number of shared blocks), or null
    int* slots;                // [rows] out: where the token's key and value go, -1 for nowhere
    int* contexts;             // [rows] out: keys to attend to, 0 for none
    int4* items;               // out, two an item: first row, number of rows, split, end of its first split's keys; context, slot and end of the splits of the first row
    int* num_items;            // out
    int num_rows;
    int table_width;
    int num_blocks;
    int works_per_item;
    int num_workers; // thread blocks
};

// The rows that share reads with `row`: at most ROWS_PER_SET neighbours of one group.
struct RowSet {
    int first_live;   // the row that lists the shared items
    int end_live;
    int num_splits;   // shared by all live rows, wholly inside the shared blocks
};

DEVICE RowSet row_set(const PlanArgs& args, int row) {
    RowSet set = {row, row + 1, 0};
    if (!args.prefix_groups || ROWS_PER_SET == 1) return set;
    int2 group = args.prefix_groups[row];
    if (group.x < 0 || group.x > row || group.y <= 0) return set;
    int start = row - (row - group.x) % ROWS_PER_SET;
    int shared_keys = group.y * BLOCK_SIZE_TOKENS;
    int first_live = -1, end_live = 0;
    for (int other = start; other < start + ROWS_PER_SET && other < args.num_rows; other++) {
        int2 other_group = args.prefix_groups[other];
        int context = args.contexts[other];
        if (other_group.x != group.x || context == 0) continue;
        if (first_live < 0) first_live = other;
        end_live = other + 1;
        // The row's own token is being written in this step, so it is never part of what is shared.
        shared_keys = min(shared_keys, min(context - 1, other_group.y * BLOCK_SIZE_TOKENS));
    }
    if (end_live - first_live < 2) return set;
    set.first_live = first_live, set.end_live = end_live, set.num_splits = shared_keys / SPLIT_KEYS;
    return set;
}

// Returns the number of keys that the row attends to.
DEVICE int place_token(const PlanArgs& args, int row) {
    int position = args.positions[row];
    int slot = -1;
    if (position >= 0 && position < args.table_width * BLOCK_SIZE_TOKENS) {
        int block = args.block_tables[(i64)row * args.table_width + position / BLOCK_SIZE_TOKENS];
        if (block >= 0 && block < args.num_blocks) slot = block * BLOCK_SIZE_TOKENS + position % BLOCK_SIZE_TOKENS;
    }
    args.slots[row] = slot;
    int context = slot < 0 ? 0 : position + 1;
    args.contexts[row] = context;
    return context;
}

// The most splits that an item may have, without leaving workers idle at the end: so few that each worker has three
// such items or more, or that as many items as there are rows take no longer than single splits would.
DEVICE int longest_item(const PlanArgs& args, int live_rows, int all_splits) {
    i64 works = (i64)all_splits * args.works_per_item, workers = args.num_workers;
    i64 rounds = ((i64)live_rows * args.works_per_item + workers - 1) / workers;
    // A sixteenth is about what joining single splits costs.
    return max((int)(works / (3 * workers)), (int)(works * 17 / 16 / (workers * max(rounds, (i64)1))));
}

// One block of 1,024 threads, one row a thread.
extern "C" __global__ void __launch_bounds__(1024) plan_decode(PlanArgs args) {
    __shared__ int warp_ends[32];
    __shared__ int num_listed, live_rows, all_splits;
    if (threadIdx.x == 0) num_listed = live_rows = all_splits = 0;
    __syncthreads();
    int own_rows = 0, own_splits = 0;
    for (int row = threadIdx.x; row < args.num_rows; row += blockDim.x) {
        int num_splits = splits_of(place_token(args, row));
        own_rows += num_splits > 0, own_splits += num_splits;
    }
    own_rows = __reduce_add_sync(0xffffffff, own_rows), own_splits = __reduce_add_sync(0xffffffff, own_splits);
    if (threadIdx.x % 32 == 0) atomicAdd(&live_rows, own_rows), atomicAdd(&all_splits, own_splits);
    __syncthreads();
    int longest = longest_item(args, live_rows, all_splits);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int base = 0; base < args.num_rows; base += blockDim.x) {
        int row = base + threadIdx.x;
        int context = row < args.num_rows ? args.contexts[row] : 0;
        RowSet set = {row, row + 1, 0};
        if (context > 0) set = row_set(args, row);
        int num_shared = row == set.first_live ? set.num_splits : 0;
        int num_splits = splits_of(context);
        bool is_whole = num_splits > 1 && num_splits <= longest && set.num_splits == 0;
        int count = context == 0 ? 0 : is_whole ? 1 : num_splits - set.num_splits + num_shared;
        int end = count;
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            int before = __shfl_up_sync(0xffffffff, end, lanes);
            if (lane >= lanes) end += before;
        }
        if (lane == 31) warp_ends[warp] = end;
        __syncthreads();
        if (warp == 0) {
            int warp_end = warp_ends[lane];
#pragma unroll
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                int before = __shfl_up_sync(0xffffffff, warp_end, lanes);
                if (lane >= lanes) warp_end += before;
            }
            warp_ends[lane] = warp_end;
        }
        __syncthreads();
        int4* items = args.items + 2 * (num_listed + end - count + (warp > 0 ? warp_ends[warp - 1] : 0));
        int slot = context > 0 ? args.slots[row] : -1;
        for (int split = 0; split < num_shared; split++) {
            *items++ = make_int4(row, set.end_live - row, split, (split + 1) * SPLIT_KEYS);
            *items++ = make_int4(context, slot, split + 1, 0);
        }
        for (int split = set.num_splits; split < (is_whole ? 1 : num_splits); split++) {
            *items++ = make_int4(row, 1, split, min((split + 1) * SPLIT_KEYS, context));
            *items++ = make_int4(context, slot, is_whole ? num_splits : split + 1, 0);
        }
        __syncthreads();
        if (threadIdx.x == 0) num_listed += warp_ends[31];
        __syncthreads();
    }
    if (threadIdx.x == 0) *args.num_items = num_listed;
}
