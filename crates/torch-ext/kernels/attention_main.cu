DEVICE int head_of(const Item& item, int column) {
    return item.group * QUERIES_PER_GROUP + item.first_query + column % QUERIES_PER_ROW;
}

DEVICE int row_of(const Item& item, int column) { return item.first_row + column / QUERIES_PER_ROW; }

// Copies the queries of the item to shared memory, T [QUERY_TILE, HEAD_DIM], unused columns as zeros.
DEVICE void fetch_queries(const AttentionArgs& args, const Item& item, T* queries) {
    const int VECTORS = HEAD_DIM * sizeof(T) / 16;
    for (int i = threadIdx.x; i < QUERY_TILE * VECTORS; i += NUM_WARPS * 32) {
        int column = i / VECTORS;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (column < item.num_columns) {
            i64 query = (i64)row_of(item, column) * args.num_groups * QUERIES_PER_GROUP + head_of(item, column);
            v = ((const uint4*)(args.q + query * HEAD_DIM))[i % VECTORS];
        }
        ((uint4*)queries)[i] = v;
    }
}

// The same from the fused QKV, rotated; the block that attends to the row's own token also writes its key and value.
template <int W>
DEVICE void rotate_queries(const AttentionArgs& args, const Item& item, T* queries) {
    const int UNITS = HEAD_DIM / (2 * W);
    int has_own = item.num_columns <= QUERIES_PER_ROW && item.end_key == args.contexts[item.first_row];
    int num_heads = QUERY_TILE + (has_own ? 2 : 0);
    for (int i = threadIdx.x; i < num_heads * UNITS; i += NUM_WARPS * 32) {
        int column = i / UNITS;
        bool is_query = column < QUERY_TILE;
        int row = is_query ? row_of(item, column) : item.first_row;
        int first, second;
        unit_bounds<W>(args.rotary, i % UNITS, &first, &second);
        float a[W] = {}, b[W] = {};
        if (column < item.num_columns || !is_query) {
            int member = is_query ? item.first_query + column % QUERIES_PER_ROW : QUERIES_PER_GROUP + column - QUERY_TILE;
            const T* from = args.q + (((i64)row * args.num_groups + item.group) * (QUERIES_PER_GROUP + 2) + member) * HEAD_DIM;
            load(from + first, a);
            load(from + second, b);
            if (member <= QUERIES_PER_GROUP) rotate_unit(args.rotary, args.contexts[row] - 1, first, a, b);
        }
        T* to = queries + column * HEAD_DIM;
        if (!is_query) {
            int slot = args.slots[row];
            to = (column == QUERY_TILE ? args.keys : args.values) +
                 (((i64)(slot / BLOCK_SIZE_TOKENS) * args.num_groups + item.group) * BLOCK_SIZE_TOKENS + slot % BLOCK_SIZE_TOKENS) * HEAD_DIM;
        }
        store(to + first, a);
        store(to + second, b);
    }
}

DEVICE Item read_item(const AttentionArgs& args, int work) {
    int works_per_item = args.num_groups * QUERY_TILES;
    int4 listed = args.items[work / works_per_item];
    Item item;
    item.first_row = listed.x;
    item.split = listed.z;
    item.first_key = listed.z * SPLIT_KEYS;
    item.end_key = listed.w;
    item.group = work % works_per_item / QUERY_TILES;
    item.first_query = work % QUERY_TILES * QUERY_TILE;
    item.num_columns = min(listed.y * QUERIES_PER_ROW, QUERIES_PER_GROUP * listed.y - item.first_query);
    return item;
}

DEVICE int num_splits_of(const AttentionArgs& args, int row) { return (args.contexts[row] + SPLIT_KEYS - 1) / SPLIT_KEYS; }

DEVICE i64 query_of(const AttentionArgs& args, const Item& item, int column) {
    return (i64)row_of(item, column) * args.num_groups * QUERIES_PER_GROUP + head_of(item, column);
}

// Joins the parts of the warps in their order: the result of a row with one split, else the partial one of this split.
DEVICE void join_warps(const AttentionArgs& args, const Item& item, const Merge& merge) {
    for (int i = threadIdx.x; i < item.num_columns * HEAD_DIM; i += NUM_WARPS * 32) {
        int column = i / HEAD_DIM, elem = i % HEAD_DIM;
        int num_splits = num_splits_of(args, row_of(item, column));
        if (num_splits == 0) continue;
        float max = NEG_INF, sum = 0.0f, out = 0.0f;
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) max = fmaxf(max, merge.stats[warp * QUERY_TILE + column].x);
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) {
            float2 stats = merge.stats[warp * QUERY_TILE + column];
            float weight = exp2f(stats.x - max);
            sum += weight * stats.y;
            out += weight * merge.outs[(warp * QUERY_TILE + column) * HEAD_DIM + elem];
        }
        i64 query = query_of(args, item, column);
        if (num_splits == 1) {
            from_float(out / sum, args.out + query * HEAD_DIM + elem);
        } else {
            i64 part = query * args.max_splits + item.split;
            args.partial_outs[part * HEAD_DIM + elem] = out;
            if (elem == 0) args.partial_stats[part] = make_float2(max, sum);
        }
    }
}

// Joins the splits of one row in their order, whoever finished them.
DEVICE void join_splits(const AttentionArgs& args, const Item& item, int first_column) {
    int row = row_of(item, first_column);
    int num_splits = num_splits_of(args, row);
    int num_columns = min(QUERIES_PER_ROW, item.num_columns - first_column);
    for (int i = threadIdx.x; i < num_columns * HEAD_DIM; i += NUM_WARPS * 32) {
        int elem = i % HEAD_DIM;
        i64 query = query_of(args, item, first_column + i / HEAD_DIM);
        const float2* stats = args.partial_stats + query * args.max_splits;
        const float* outs = args.partial_outs + query * args.max_splits * HEAD_DIM + elem;
        float max = NEG_INF, sum = 0.0f, out = 0.0f;
#pragma unroll 8
        for (int split = 0; split < num_splits; split++) max = fmaxf(max, __ldcg(&stats[split].x));
#pragma unroll 8
        for (int split = 0; split < num_splits; split++) {
            float2 part = __ldcg(&stats[split]);
            float weight = exp2f(part.x - max);
            sum += weight * part.y;
            out += weight * __ldcg(&outs[split * HEAD_DIM]);
        }
        from_float(out / sum, args.out + query * HEAD_DIM + elem);
    }
}

// The block that finishes the last split of a row joins them all.
DEVICE void finish_item(const AttentionArgs& args, const Item& item, const Merge& merge) {
    __shared__ int is_last[ROWS_PER_SET];
    join_warps(args, item, merge);
    bool is_alone = item.num_columns <= QUERIES_PER_ROW && num_splits_of(args, item.first_row) == 1;
    if (is_alone) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x * QUERIES_PER_ROW < item.num_columns) {
        int row = item.first_row + threadIdx.x;
        int num_splits = num_splits_of(args, row);
        int* counter = args.counters + ((i64)row * args.num_groups + item.group) * QUERY_TILES + item.first_query / QUERY_TILE;
        is_last[threadIdx.x] = num_splits > 0 && atomicAdd(counter, 1) == num_splits - 1;
        if (is_last[threadIdx.x]) *counter = 0;
    }
    __syncthreads();
    for (int column = 0; column < item.num_columns; column += QUERIES_PER_ROW) {
        if (!is_last[column / QUERIES_PER_ROW]) continue;
        __threadfence();
        join_splits(args, item, column);
    }
}

// A fixed grid loops over the items, so that one graph serves all context lengths.
template <bool FROM_QKV>
DEVICE void attend(const AttentionArgs& args) {
    extern __shared__ uint4 shared[];
    T* queries = (T*)shared;
    Merge merge;
    merge.outs = (float*)(queries + QUERY_TILE * HEAD_DIM);
    merge.stats = (float2*)(merge.outs + NUM_WARPS * QUERY_TILE * HEAD_DIM);
    wait_for_previous_kernel();
    let_next_kernel_start();
    int num_works = *args.num_items * args.num_groups * QUERY_TILES;
    for (int work = blockIdx.x; work < num_works; work += gridDim.x) {
        Item item = read_item(args, work);
        if constexpr (!FROM_QKV) {
            fetch_queries(args, item, queries);
        } else if (args.rotary.rotary_dim % 16 == 0) {
            rotate_queries<8>(args, item, queries);
        } else {
            rotate_queries<1>(args, item, queries);
        }
        __syncthreads();
        attend_warp(args, item, queries, merge);
        __syncthreads();
        finish_item(args, item, merge);
    }
}

extern "C" __global__ void __launch_bounds__(NUM_WARPS * 32, BLOCKS_PER_SM) decode_attention(AttentionArgs args) {
    attend<false>(args);
}

extern "C" __global__ void __launch_bounds__(NUM_WARPS * 32, BLOCKS_PER_SM) decode_attention_qkv(AttentionArgs args) {
    attend<true>(args);
}
