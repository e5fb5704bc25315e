// Decode attention over the paged cache. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.

#include "common.cuh"
#include "rotary.cuh"
#include "tiling.cuh"
#include "plan.cuh"
#include "item.cuh"
#if ELEM == 0
#include "attend_f32.cuh"
#elif KV_FP8
#include "attend_fp8.cuh"
#else
#include "attend_mma.cuh"
#endif
#include "join.cuh"

DEVICE Item read_item(const AttentionArgs& args, int work) {
    int works_per_item = args.num_groups * QUERY_TILES;
    // Read before it is known whether there is such an item, hence the bound.
    const int4* listed = args.items + 2 * (i64)min(work / works_per_item, args.max_items - 1);
    int4 rows = listed[0], keys = listed[1];
    Item item;
    item.first_row = item.row = rows.x;
    item.num_rows = rows.y;
    item.is_alone = rows.y == 1;
    item.is_whole = rows.z;
    item.split = keys.x;
    item.shared_splits = item.end_split = keys.y;
    item.context = keys.z;
    item.slot = keys.w;
    item.group = work % works_per_item / QUERY_TILES;
    item.first_query = work % QUERY_TILES * QUERY_TILE;
#if IS_LOCAL
    item.window_start = window_start(item.context, args.local_tokens);
#endif
    return item;
}

#if KV_FP8

// A warp leaves a query in shared memory. In types of two bytes it becomes float16, with a power of two that brings its
// largest element to 2^14 or above; what its scores are multiplied by undoes that.
template <int W>
DEVICE void store_query(const AttentionArgs& args, const Merge& merge, int column, HeadUnits<W>& head, T* queries) {
    T* to = queries + column * HEAD_DIM;
#if ELEM == 0
    store_units(args.rotary, to, head);
#else
    int exponent = max((int)(max_bits_of(head) >> 23), 15), lane = threadIdx.x % 32;
    float factor = power_of_two(127 + 14 + 127 - exponent);
    if (lane == 0) merge.query_scales[column] = args.scale_log2 * power_of_two(exponent - 14);
#pragma unroll
    for (int u = 0; u < HeadUnits<W>::PER_LANE; u++) {
        int unit = u * 32 + lane, first, second;
        if (unit >= HeadUnits<W>::COUNT) continue;
        unit_bounds<W>(args.rotary, unit, &first, &second);
#pragma unroll
        for (int i = 0; i < W; i++) {
            u32 halves = pack_halves(head.a[u][i] * factor, head.b[u][i] * factor);
            to[first + i] = (u16)halves, to[second + i] = (u16)(halves >> 16);
        }
    }
#endif
}

// Brings the queries of the item to shared memory, [QUERY_TILE, HEAD_DIM], a warp each. From the fused QKV they are rotated,
// and the block that attends to a row's own token also writes its key and value. The last warps begin, as the first ones are
// still joining what came before.
template <bool FROM_QKV, int W>
DEVICE void bring_queries(const AttentionArgs& args, const Item& item, const Merge& merge, T* queries) {
    int num_queries = end_column(item), num_heads = num_queries;
    if (FROM_QKV && has_own_tokens(item)) num_heads += 2 * item.num_rows;
    for (int i = NUM_WARPS - 1 - threadIdx.x / 32; i < num_heads; i += NUM_WARPS) {
        int own = i - num_queries;
        bool is_query = own < 0;
        int row = is_query ? row_of(item, i) : item.first_row + own / 2;
        int member = is_query ? item.first_query + i % QUERIES_PER_ROW : QUERIES_PER_GROUP + own % 2;
        const T* from = FROM_QKV ? args.q + (((i64)row * args.num_groups + item.group) * (QUERIES_PER_GROUP + 2) + member) * HEAD_DIM
                                 : args.q + query_of(args, item, i) * HEAD_DIM;
        HeadUnits<W> head;
        int position = max(context_of(args, item, row) - 1, 0);
        read_units(args.rotary, from, FROM_QKV && member <= QUERIES_PER_GROUP, position, &head);
        if (is_query) {
            store_query(args, merge, i, head, queries);
        } else {
            int slot = row == item.row ? item.slot : args.slots[row];
            Cached* cache = member == QUERIES_PER_GROUP ? args.keys : args.values;
            // A row without a token has no slot.
            Cached* of_block = slot < 0 ? 0 : cache + head_block(args.num_groups, slot / BLOCK_SIZE_TOKENS, item.group);
            write_head(of_block, slot % BLOCK_SIZE_TOKENS, args.rotary, &head);
        }
    }
}

#else

// Copies the queries of the item to shared memory, T [QUERY_TILE, HEAD_DIM]. Unused columns may hold
// garbage; columns are independent.
DEVICE void fetch_queries(const AttentionArgs& args, const Item& item, T* queries) {
    const int VECTORS = HEAD_DIM * sizeof(T) / 16;
    for (int i = threadIdx.x; i < end_column(item) * VECTORS; i += NUM_WARPS * 32) {
        int column = i / VECTORS;
        ((uint4*)queries)[i] = ((const uint4*)(args.q + query_of(args, item, column) * HEAD_DIM))[i % VECTORS];
    }
}

// The same from the fused QKV, rotated; the block that attends to a row's own token also writes its key and value. The
// last warps begin, as the first ones are still joining what came before.
template <int W>
DEVICE void rotate_queries(const AttentionArgs& args, const Item& item, T* queries) {
    const int UNITS = HEAD_DIM / (2 * W);
    int num_queries = end_column(item), num_heads = num_queries + (has_own_tokens(item) ? 2 * item.num_rows : 0);
    for (int i = NUM_WARPS * 32 - 1 - threadIdx.x; i < num_heads * UNITS; i += NUM_WARPS * 32) {
        int column = i / UNITS, own = column - num_queries;
        bool is_query = own < 0;
        int row = is_query ? row_of(item, column) : item.first_row + own / 2;
        int member = is_query ? item.first_query + column % QUERIES_PER_ROW : QUERIES_PER_GROUP + own % 2;
        int first, second;
        unit_bounds<W>(args.rotary, i % UNITS, &first, &second);
        const T* from = args.q + (((i64)row * args.num_groups + item.group) * (QUERIES_PER_GROUP + 2) + member) * HEAD_DIM;
        float a[W], b[W];
        load(from + first, a);
        load(from + second, b);
        int position = max(context_of(args, item, row) - 1, 0);
        if (member <= QUERIES_PER_GROUP) rotate_unit(args.rotary, position, first, a, b);
        T* to = queries + column * HEAD_DIM;
        if (!is_query) {
            int slot = row == item.row ? item.slot : args.slots[row];
            i64 offset = tile_offset(args, item, slot / BLOCK_SIZE_TOKENS, slot);
            to = (member == QUERIES_PER_GROUP ? args.keys : args.values) + offset;
        }
        store(to + first, a);
        store(to + second, b);
    }
}

#endif

template <bool FROM_QKV>
DEVICE void bring_queries(const AttentionArgs& args, const Item& item, const Merge& merge, T* queries) {
#if KV_FP8
    if (args.rotary.rotary_dim % 4 == 0) {
        bring_queries<FROM_QKV, 2>(args, item, merge, queries);
    } else {
        bring_queries<FROM_QKV, 1>(args, item, merge, queries);
    }
#else
    if constexpr (!FROM_QKV) {
        fetch_queries(args, item, queries);
    } else if (args.rotary.rotary_dim % 16 == 0) {
        rotate_queries<8>(args, item, queries);
    } else {
        rotate_queries<1>(args, item, queries);
    }
#endif
}

// Prefetches what an item reads to the L2 cache: a block that has only this item has too few loads of its
// own in flight to be fast.
DEVICE void prefetch_item(const AttentionArgs& args, const Item& item) {
    const int BLOCK_BYTES = HEAD_BLOCK * sizeof(Cached), LINE_BYTES = 128;
    const int LINES = (BLOCK_BYTES + LINE_BYTES - 1) / LINE_BYTES;
    int first = item.split * SPLIT_KEYS, num_blocks = (end_key(item) - first + BLOCK_SIZE_TOKENS - 1) / BLOCK_SIZE_TOKENS;
    for (int i = threadIdx.x; i < num_blocks * LINES; i += NUM_WARPS * 32) {
        int base = first + i / LINES * BLOCK_SIZE_TOKENS;
        i64 offset = tile_offset(args, item, block_at(args, item, base), base) + i % LINES * (LINE_BYTES / (int)sizeof(Cached));
        prefetch(args.keys + offset);
        prefetch(args.values + offset);
    }
    int half = args.rotary.rotary_dim / 2, position = item.context - 1;
    if (position >= args.rotary.max_positions) return;
    for (int i = threadIdx.x * LINE_BYTES / 4; i < half; i += NUM_WARPS * 32 * LINE_BYTES / 4) {
        prefetch(args.rotary.cos + (i64)position * half + i);
        prefetch(args.rotary.sin + (i64)position * half + i);
    }
}

// Each block has two works of its own, and the ones after go to whoever asks first, as some blocks are slower than others:
// which block does a work decides nothing of its result. The block that ends last puts the tickets back to zero.
DEVICE void end_tickets(const AttentionArgs& args, int num_workers) {
    if (threadIdx.x > 0) return;
    __threadfence();
    if (atomicAdd(args.tickets + 1, 1) == num_workers - 1) args.tickets[0] = args.tickets[1] = 0;
}

// A fixed grid loops over the items, so that one graph serves all context lengths.
template <bool FROM_QKV>
DEVICE void attend(const AttentionArgs& args) {
    extern __shared__ uint4 shared[];
    __shared__ int shared_ticket;
    let_next_start();
    T* queries = (T*)shared;
    Merge merge;
    merge.outs = (float*)(queries + QUERY_TILE * HEAD_DIM);
    merge.joined_outs = (float4*)(merge.outs + NUM_WARPS * QUERY_TILE * HEAD_DIM);
    merge.joined_stats = (float2*)(merge.joined_outs + QUERY_TILE * HEAD_DIM / 4);
    merge.stats = merge.joined_stats + QUERY_TILE * HEAD_DIM / 4;
    merge.query_scales = (float*)(merge.stats + NUM_WARPS * QUERY_TILE);
#if KV_FP8
    // Of columns that no query has, nothing that is not a number may come.
    for (int i = threadIdx.x; i < QUERY_TILE * HEAD_DIM; i += NUM_WARPS * 32) queries[i] = 0;
    if (threadIdx.x < QUERY_TILE) merge.query_scales[threadIdx.x] = 0.0f;
    __syncthreads();
#endif
    // The plan, and the keys and values of earlier steps, were written before a kernel that did not start early: they
    // need not be waited for. The queries must be.
    Item item = read_item(args, blockIdx.x);
    int num_works = *args.num_items * args.num_groups * QUERY_TILES;
    int num_workers = gridDim.x;
    // The longest works come first: whoever has one of them is the last to get another.
    int next_work = 2 * num_workers - 1 - blockIdx.x;
    bool has_tickets = num_works > 2 * num_workers;
    if (blockIdx.x >= min(num_works, num_workers)) {
        // One block has to wait even if none has work: the kernel after this one may rely on what came before it.
        if (blockIdx.x == 0) wait_for_previous();
        return;
    }
    FirstTile tile;
    fetch_first_tile(args, item, block_at(args, item, first_tile(item)), &tile);
    if (num_works <= num_workers) prefetch_item(args, item);
    wait_for_previous();
    int ticket = 0;
    while (true) {
        bool ends_item = is_last_step(item), is_last = ends_item && next_work >= num_works;
        Item next = item;
        if (!ends_item) {
            next = next_step(args, item);
        } else if (!is_last) {
            next = read_item(args, next_work);
        }
        if (is_first_step(item)) {
            if (has_tickets && threadIdx.x == 0) ticket = atomicAdd(args.tickets, 1);
            bring_queries<FROM_QKV>(args, item, merge, queries);
        }
        __syncthreads();
        int next_block = block_at(args, next, first_tile(next));
        attend_warp(args, item, queries, &tile, merge);
        if (threadIdx.x == 0) shared_ticket = ticket;
        __syncthreads();
        if (!is_last) fetch_first_tile(args, next, next_block, &tile);
        join_warps(args, item, merge);
        if (!item.is_whole) count_split(args, item);
        if (is_last) break;
        if (ends_item) next_work = has_tickets ? 2 * num_workers + shared_ticket : num_works;
        item = next;
    }
    if (has_tickets) end_tickets(args, num_workers);
}

extern "C" __global__ void __launch_bounds__(NUM_WARPS * 32, BLOCKS_PER_SM) decode_attention(AttentionArgs args) {
    attend<false>(args);
}

extern "C" __global__ void __launch_bounds__(NUM_WARPS * 32, BLOCKS_PER_SM) decode_attention_qkv(AttentionArgs args) {
    attend<true>(args);
}
