// The loop over items and how their parts are joined.

DEVICE int head_of(const Item& item, int column) {
    return item.group * QUERIES_PER_GROUP + item.first_query + column % QUERIES_PER_ROW;
}

DEVICE int row_of(const Item& item, int column) { return item.first_row + column / QUERIES_PER_ROW; }

DEVICE i64 query_of(const AttentionArgs& args, const Item& item, int column) {
    return (i64)row_of(item, column) * args.num_groups * QUERIES_PER_GROUP + head_of(item, column);
}

DEVICE int context_of(const AttentionArgs& args, const Item& item, int row) {
    return row == item.first_row ? item.context : args.contexts[row];
}

DEVICE int num_splits_of(const AttentionArgs& args, const Item& item, int row) {
    return (context_of(args, item, row) + SPLIT_KEYS - 1) / SPLIT_KEYS;
}

DEVICE Item read_item(const AttentionArgs& args, int work) {
    int works_per_item = args.num_groups * QUERY_TILES;
    // Read before it is known whether there is such an item, hence the bound.
    const int4* listed = args.items + 2 * (i64)min(work / works_per_item, args.max_items - 1);
    int4 keys = listed[0], first_row = listed[1];
    Item item;
    item.first_row = keys.x;
    item.num_rows = keys.y;
    item.split = keys.z;
    item.first_key = keys.z * SPLIT_KEYS;
    item.end_key = keys.w;
    item.context = first_row.x;
    item.slot = first_row.y;
    item.group = work % works_per_item / QUERY_TILES;
    item.first_query = work % QUERY_TILES * QUERY_TILE;
    item.num_columns = min(item.num_rows * QUERIES_PER_ROW, item.num_rows * QUERIES_PER_GROUP - item.first_query);
    return item;
}

// Copies the queries of the item to shared memory, T [QUERY_TILE, HEAD_DIM]. What stands in unused columns is nobody's
// business: columns do not mix.
DEVICE void fetch_queries(const AttentionArgs& args, const Item& item, T* queries) {
    const int VECTORS = HEAD_DIM * sizeof(T) / 16;
    for (int i = threadIdx.x; i < item.num_columns * VECTORS; i += NUM_WARPS * 32) {
        int column = i / VECTORS;
        ((uint4*)queries)[i] = ((const uint4*)(args.q + query_of(args, item, column) * HEAD_DIM))[i % VECTORS];
    }
}

// The same from the fused QKV, rotated; the block that attends to the row's own token also writes its key and value.
template <int W>
DEVICE void rotate_queries(const AttentionArgs& args, const Item& item, T* queries) {
    const int UNITS = HEAD_DIM / (2 * W);
    int num_heads = item.num_columns + (has_own_token(item, item.end_key - 1) ? 2 : 0);
    for (int i = threadIdx.x; i < num_heads * UNITS; i += NUM_WARPS * 32) {
        int column = i / UNITS;
        bool is_query = column < item.num_columns;
        int row = is_query ? row_of(item, column) : item.first_row;
        int member = is_query ? item.first_query + column % QUERIES_PER_ROW : QUERIES_PER_GROUP + column - item.num_columns;
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
            i64 offset = tile_offset(args, item, item.slot / BLOCK_SIZE_TOKENS, item.slot);
            to = (member == QUERIES_PER_GROUP ? args.keys : args.values) + offset;
        }
        store(to + first, a);
        store(to + second, b);
    }
}

DEVICE void add_scaled(float4* sum, float scale, float4 part) {
    sum->x += scale * part.x, sum->y += scale * part.y, sum->z += scale * part.z, sum->w += scale * part.w;
}

DEVICE void store_result(const AttentionArgs& args, i64 query, int elem, float4 out, float sum) {
    T* to = args.out + query * HEAD_DIM + elem;
    float values[4] = {out.x / sum, out.y / sum, out.z / sum, out.w / sum};
#if ELEM == 0
    *(float4*)to = make_float4(values[0], values[1], values[2], values[3]);
#else
    *(uint2*)to = make_uint2(pack2(values[0], values[1]), pack2(values[2], values[3]));
#endif
}

// Joins the parts of the warps in their order: the result of a row with one split, else the partial one of this split.
DEVICE void join_warps(const AttentionArgs& args, const Item& item, const Merge& merge) {
    for (int i = threadIdx.x * 4; i < item.num_columns * HEAD_DIM; i += NUM_WARPS * 32 * 4) {
        int column = i / HEAD_DIM, elem = i % HEAD_DIM;
        int num_splits = num_splits_of(args, item, row_of(item, column));
        if (num_splits == 0) continue;
        float max = NEG_INF, sum = 0.0f;
        float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) max = fmaxf(max, merge.stats[warp * QUERY_TILE + column].x);
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) {
            float2 stats = merge.stats[warp * QUERY_TILE + column];
            float weight = exp2f(stats.x - max);
            sum += weight * stats.y;
            add_scaled(&out, weight, *(const float4*)(merge.outs + (warp * QUERY_TILE + column) * HEAD_DIM + elem));
        }
        i64 query = query_of(args, item, column);
        if (num_splits == 1) {
            store_result(args, query, elem, out, sum);
        } else {
            i64 part = query * args.max_splits + item.split;
            *(float4*)(args.partial_outs + part * HEAD_DIM + elem) = out;
            if (elem == 0) args.partial_stats[part] = make_float2(max, sum);
        }
    }
}

// Joins the splits of one row in their order, whoever finished them, SPLITS_AT_ONCE loads in flight.
DEVICE void join_splits(const AttentionArgs& args, const Item& item, int first_column) {
    const int SPLITS_AT_ONCE = 4;
    int num_splits = num_splits_of(args, item, row_of(item, first_column));
    int num_columns = min(QUERIES_PER_ROW, item.num_columns - first_column);
    for (int i = threadIdx.x * 4; i < num_columns * HEAD_DIM; i += NUM_WARPS * 32 * 4) {
        int elem = i % HEAD_DIM;
        i64 query = query_of(args, item, first_column + i / HEAD_DIM);
        const float2* stats = args.partial_stats + query * args.max_splits;
        const float* outs = args.partial_outs + query * args.max_splits * HEAD_DIM + elem;
        float max = NEG_INF, sum = 0.0f;
        float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int start = 0; start < num_splits; start += SPLITS_AT_ONCE) {
            float2 part_stats[SPLITS_AT_ONCE];
            float4 parts[SPLITS_AT_ONCE];
            float new_max = max;
#pragma unroll
            for (int j = 0; j < SPLITS_AT_ONCE; j++) {
                part_stats[j] = make_float2(NEG_INF, 0.0f);
                parts[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (start + j >= num_splits) continue;
                part_stats[j] = __ldcg(stats + start + j);
                parts[j] = __ldcg((const float4*)(outs + (i64)(start + j) * HEAD_DIM));
            }
#pragma unroll
            for (int j = 0; j < SPLITS_AT_ONCE; j++) new_max = fmaxf(new_max, part_stats[j].x);
            float shrink = exp2f(max - new_max);
            sum *= shrink;
            out.x *= shrink, out.y *= shrink, out.z *= shrink, out.w *= shrink;
            max = new_max;
#pragma unroll
            for (int j = 0; j < SPLITS_AT_ONCE; j++) {
                float weight = exp2f(part_stats[j].x - max);
                sum += weight * part_stats[j].y;
                add_scaled(&out, weight, parts[j]);
            }
        }
        store_result(args, query, elem, out, sum);
    }
}

// The block that finishes the last split of a row joins them all.
DEVICE void finish_item(const AttentionArgs& args, const Item& item, const Merge& merge) {
    __shared__ int is_last[ROWS_PER_SET];
    join_warps(args, item, merge);
    if (item.num_rows == 1 && item.context <= SPLIT_KEYS) return;
    __syncthreads();
    if (threadIdx.x < item.num_rows) {
        int row = item.first_row + threadIdx.x;
        int num_splits = num_splits_of(args, item, row);
        int* counter = args.counters + ((i64)row * args.num_groups + item.group) * QUERY_TILES + item.first_query / QUERY_TILE;
        __threadfence();
        is_last[threadIdx.x] = num_splits > 0 && atomicAdd(counter, 1) == num_splits - 1;
        if (is_last[threadIdx.x]) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    for (int r = 0; r < item.num_rows; r++) {
        if (is_last[r]) join_splits(args, item, r * QUERIES_PER_ROW);
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
    int work = blockIdx.x;
    Item item = read_item(args, work);
    int num_works = *args.num_items * args.num_groups * QUERY_TILES;
    if (work >= num_works) return;
    FirstTile tile;
    fetch_first_tile(args, item, block_at(args, item, min(first_tile(item), item.end_key - 1)), &tile);
    while (true) {
        int next_work = work + gridDim.x;
        Item next = item;
        if (next_work < num_works) next = read_item(args, next_work);
        if constexpr (!FROM_QKV) {
            fetch_queries(args, item, queries);
        } else if (args.rotary.rotary_dim % 16 == 0) {
            rotate_queries<8>(args, item, queries);
        } else {
            rotate_queries<1>(args, item, queries);
        }
        __syncthreads();
        int next_block = block_at(args, next, min(first_tile(next), next.end_key - 1));
        attend_warp(args, item, queries, &tile, merge);
        __syncthreads();
        if (next_work < num_works) fetch_first_tile(args, next, next_block, &tile);
        finish_item(args, item, merge);
        if (next_work >= num_works) break;
        item = next, work = next_work;
    }
}

extern "C" __global__ void __launch_bounds__(NUM_WARPS * 32, BLOCKS_PER_SM) decode_attention(AttentionArgs args) {
    attend<false>(args);
}

extern "C" __global__ void __launch_bounds__(NUM_WARPS * 32, BLOCKS_PER_SM) decode_attention_qkv(AttentionArgs args) {
    attend<true>(args);
}
