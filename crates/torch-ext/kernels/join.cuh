#pragma once
// How the parts of warps and splits are joined.

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
