#pragma once
// What the decode attention of one step has to do, found once and used by all layers.

// The keys of a row are cut at multiples of SPLIT_KEYS. An item is one such split of one row, or, where the split lies
// wholly inside blocks that neighbouring rows share, of up to ROWS_PER_SET of them. Where there is work enough, it is all
// that such a set of rows, or a row by itself, has to do: nothing is kept in memory and joined then. The bits of a row
// never depend on which: rows are columns of the same GEMMs, and splits are joined in the same order.

struct PlanArgs {
    const int* positions;      // [rows], below 0: no work
    const int* block_tables;   // [rows, table_width]
    const int2* prefix_groups; // [rows] of (first row of the group, number of shared blocks), or null
    int* slots;                // [rows] out: where the token's key and value go, -1 for nowhere
    int* contexts;             // [rows] out: keys to attend to, 0 for none
    int4* items;               // out, two an item: first row, rows, whether it is whole, nothing; then of the first row:
                               // first split, end of those that all rows of the item have, keys, slot
    int* num_items;            // out
    int num_rows;
    int table_width;
    int num_blocks;
    int works_per_item;
    int num_workers; // thread blocks
    int local_tokens; // that a row sees, where IS_LOCAL
};

// The rows that share reads with `row`: at most ROWS_PER_SET neighbours of one group.
struct RowSet {
    int first_row;    // the row that lists what they share
    int num_rows;
    int num_splits;   // end of those shared by all live rows, wholly inside the shared blocks; of all of a row by itself
    int num_keys;     // that are read for it, the shared ones once; 0 if it cannot be one item, as some row is not live
};

DEVICE RowSet row_set(const PlanArgs& args, int row) {
    int own_context = args.contexts[row];
    RowSet alone = {row, 1, splits_of(own_context), own_context - window_start(own_context, args.local_tokens)};
    // Windows of rows begin at different keys.
    if (IS_LOCAL || !args.prefix_groups || ROWS_PER_SET == 1) return alone;
    int2 group = args.prefix_groups[row];
    if (group.x < 0 || group.x > row || group.y <= 0) return alone;
    int start = row - (row - group.x) % ROWS_PER_SET;
    int shared_keys = group.y * BLOCK_SIZE_TOKENS;
    int first_live = -1, end_live = 0, num_live = 0, all_keys = 0;
    for (int other = start; other < start + ROWS_PER_SET && other < args.num_rows; other++) {
        int2 other_group = args.prefix_groups[other];
        int context = args.contexts[other];
        if (other_group.x != group.x || context == 0) continue;
        if (first_live < 0) first_live = other;
        end_live = other + 1, num_live++, all_keys += context;
        // The row's own token is being written in this step, so it is never part of what is shared.
        shared_keys = min(shared_keys, min(context - 1, other_group.y * BLOCK_SIZE_TOKENS));
    }
    int num_splits = shared_keys / SPLIT_KEYS, num_rows = end_live - first_live;
    if (num_rows < 2 || num_splits == 0) return alone;
    int num_keys = num_live == num_rows ? all_keys - (num_live - 1) * num_splits * SPLIT_KEYS : 0;
    return {first_live, num_rows, num_splits, num_keys};
}

DEVICE void place_token(const PlanArgs& args, int row) {
    int position = args.positions[row];
    int slot = -1;
    if (position >= 0 && position < args.table_width * BLOCK_SIZE_TOKENS) {
        int block = args.block_tables[(i64)row * args.table_width + position / BLOCK_SIZE_TOKENS];
        if (block >= 0 && block < args.num_blocks) slot = block * BLOCK_SIZE_TOKENS + position % BLOCK_SIZE_TOKENS;
    }
    args.slots[row] = slot;
    args.contexts[row] = slot < 0 ? 0 : position + 1;
}

// Sums over the block. `sums` is shared; all of it stands after the block's next barrier.
DEVICE void add_to(int* sums, int first, int second) {
    first = __reduce_add_sync(0xffffffff, first), second = __reduce_add_sync(0xffffffff, second);
    if (threadIdx.x % 32 == 0) atomicAdd(sums, first), atomicAdd(sums + 1, second);
}

// The most keys of a whole item that leave no workers idle at the end: so few that each worker has three such items or
// more, or that the rounds it takes to do all sets whole are as good as full.
DEVICE int longest_item(const PlanArgs& args, int num_sets, int num_keys) {
    i64 works = (i64)num_keys * args.works_per_item, workers = args.num_workers;
    i64 rounds = ((i64)num_sets * args.works_per_item + workers - 1) / workers;
    // A sixteenth is about what joining single splits costs.
    return (int)max(works / (3 * workers), works * 17 / 16 / (workers * max(rounds, (i64)1)));
}

struct Count {
    int early; // what many rows share or what is whole: the longest items begin first
    int late;
};

DEVICE bool is_whole(const RowSet& set, int first_split, int longest) {
    return (set.num_rows == 1 && set.num_splits - first_split == 1) || (set.num_keys > 0 && set.num_keys <= longest);
}

DEVICE Count count_items(const PlanArgs& args, int row, int longest) {
    int context = row < args.num_rows ? args.contexts[row] : 0;
    if (context == 0) return {0, 0};
    RowSet set = row_set(args, row);
    int first = first_split_of(context, args.local_tokens);
    bool is_first = row == set.first_row;
    if (is_whole(set, first, longest)) return {is_first, 0};
    if (set.num_rows == 1) return {0, set.num_splits - first};
    return {is_first ? set.num_splits : 0, splits_of(context) - set.num_splits};
}

DEVICE void list_items(const PlanArgs& args, int row, int longest, int4* early, int4* late) {
    RowSet set = row_set(args, row);
    int context = args.contexts[row], slot = args.slots[row], first = first_split_of(context, args.local_tokens);
    int own_split = set.num_rows == 1 ? first : set.num_splits;
    if (is_whole(set, first, longest)) {
        if (row != set.first_row) return;
        early[0] = make_int4(row, set.num_rows, true, 0);
        early[1] = make_int4(first, set.num_splits, context, slot);
        return;
    }
    for (int split = first; split < own_split && row == set.first_row; split++, early += 2) {
        early[0] = make_int4(row, set.num_rows, false, 0);
        early[1] = make_int4(split, split + 1, context, slot);
    }
    for (int split = own_split; split < splits_of(context); split++, late += 2) {
        late[0] = make_int4(row, 1, false, 0);
        late[1] = make_int4(split, split + 1, context, slot);
    }
}

// Items of the rows of the threads before this one. All threads of a block of 32 warps call it.
DEVICE Count count_before(Count own, Count* warp_ends, Count* all) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Count end = own;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        int early = __shfl_up_sync(0xffffffff, end.early, lanes), late = __shfl_up_sync(0xffffffff, end.late, lanes);
        if (lane >= lanes) end.early += early, end.late += late;
    }
    if (lane == 31) warp_ends[warp] = end;
    __syncthreads();
    Count before = {end.early - own.early, end.late - own.late};
    *all = {0, 0};
    for (int other = 0; other < 32; other++) {
        if (other == warp) before.early += all->early, before.late += all->late;
        all->early += warp_ends[other].early, all->late += warp_ends[other].late;
    }
    __syncthreads();
    return before;
}

// One block of 1,024 threads, one row a thread.
extern "C" __global__ void __launch_bounds__(1024) plan_decode(PlanArgs args) {
    __shared__ int sets[2], counts[2];
    __shared__ Count warp_ends[32];
    if (threadIdx.x == 0) sets[0] = sets[1] = counts[0] = counts[1] = 0;
    for (int row = threadIdx.x; row < args.num_rows; row += blockDim.x) place_token(args, row);
    __syncthreads();
    int num_sets = 0, num_keys = 0;
    for (int row = threadIdx.x; row < args.num_rows; row += blockDim.x) {
        if (args.contexts[row] == 0) continue;
        RowSet set = row_set(args, row);
        if (row == set.first_row) num_sets++, num_keys += set.num_keys;
    }
    add_to(sets, num_sets, num_keys);
    __syncthreads();
    int longest = longest_item(args, sets[0], sets[1]);
    int num_early = 0, num_late = 0;
    for (int row = threadIdx.x; row < args.num_rows; row += blockDim.x) {
        Count count = count_items(args, row, longest);
        num_early += count.early, num_late += count.late;
    }
    add_to(counts, num_early, num_late);
    __syncthreads();
    int4* early = args.items;
    int4* late = args.items + 2 * counts[0];
    for (int base = 0; base < args.num_rows; base += blockDim.x) {
        int row = base + threadIdx.x;
        Count own = count_items(args, row, longest), all;
        Count before = count_before(own, warp_ends, &all);
        if (own.early + own.late > 0) list_items(args, row, longest, early + 2 * before.early, late + 2 * before.late);
        early += 2 * all.early, late += 2 * all.late;
    }
    if (threadIdx.x == 0) *args.num_items = counts[0] + counts[1];
}
