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

// Weights of some keys' values, summed up: the maximum of the scores, the sum of exponentials, four elements.
struct Part {
    float max, sum;
    float4 out;
};

// In one order of operations wherever it is done, as it decides the bits of a result.
DEVICE void add_split(Part* to, const Part& split) {
    float max = fmaxf(to->max, split.max);
    float shrink = exp2f(to->max - max), weight = exp2f(split.max - max);
    to->max = max;
    to->sum = __fmaf_rn(weight, split.sum, __fmul_rn(shrink, to->sum));
    to->out.x = __fmaf_rn(weight, split.out.x, __fmul_rn(shrink, to->out.x));
    to->out.y = __fmaf_rn(weight, split.out.y, __fmul_rn(shrink, to->out.y));
    to->out.z = __fmaf_rn(weight, split.out.z, __fmul_rn(shrink, to->out.z));
    to->out.w = __fmaf_rn(weight, split.out.w, __fmul_rn(shrink, to->out.w));
}

// Joins the parts of the warps in their order, and where the item is whole what the splits before came to. The result
// goes out when it is that of the row, else it is kept for the next split or for whoever finishes the row.
DEVICE void join_warps(const AttentionArgs& args, const Item& item, const Merge& merge) {
    int start = first_column(item) * HEAD_DIM, end = end_column(item) * HEAD_DIM;
    for (int i = start + threadIdx.x * 4; i < end; i += NUM_WARPS * 32 * 4) {
        int column = i / HEAD_DIM, elem = i % HEAD_DIM;
        Part part = {NEG_INF, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) part.max = fmaxf(part.max, merge.stats[warp * QUERY_TILE + column].x);
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) {
            float2 stats = merge.stats[warp * QUERY_TILE + column];
            float weight = exp2f(stats.x - part.max);
            part.sum += weight * stats.y;
            add_scaled(&part.out, weight, *(const float4*)(merge.outs + (warp * QUERY_TILE + column) * HEAD_DIM + elem));
        }
        if (item.is_whole && item.split > first_split(item)) {
            float2 stats = merge.joined_stats[i / 4];
            Part before = {stats.x, stats.y, merge.joined_outs[i / 4]};
            add_split(&before, part);
            part = before;
        }
        i64 query = query_of(args, item, column);
        if (!item.is_whole) {
            i64 at = query * args.max_splits + item.split;
            *(float4*)(args.partial_outs + at * HEAD_DIM + elem) = part.out;
            if (elem == 0) args.partial_stats[at] = make_float2(part.max, part.sum);
        } else if (item.is_alone && item.split + 1 == item.end_split) {
            store_result(args, query, elem, part.out, part.sum);
        } else {
            merge.joined_outs[i / 4] = part.out;
            merge.joined_stats[i / 4] = make_float2(part.max, part.sum);
        }
    }
}

// Joins the splits of one row in their order, whoever finished them, SPLITS_AT_ONCE loads in flight.
DEVICE void join_splits(const AttentionArgs& args, const Item& item, int first) {
    const int SPLITS_AT_ONCE = 4;
    int row = row_of(item, first), num_splits = num_splits_of(args, item, row);
    int first_split = first_split_of_row(args, item, row);
    int num_columns = columns_of_row(item);
    for (int i = threadIdx.x * 4; i < num_columns * HEAD_DIM; i += NUM_WARPS * 32 * 4) {
        int elem = i % HEAD_DIM;
        i64 query = query_of(args, item, first + i / HEAD_DIM);
        const float2* stats = args.partial_stats + query * args.max_splits;
        const float* outs = args.partial_outs + query * args.max_splits * HEAD_DIM + elem;
        Part joined;
        for (int start = first_split; start < num_splits; start += SPLITS_AT_ONCE) {
            Part parts[SPLITS_AT_ONCE];
#pragma unroll
            for (int j = 0; j < SPLITS_AT_ONCE; j++) {
                int split = min(start + j, num_splits - 1);
                float2 split_stats = __ldcg(stats + split);
                parts[j] = {split_stats.x, split_stats.y, __ldcg((const float4*)(outs + (i64)split * HEAD_DIM))};
            }
#pragma unroll
            for (int j = 0; j < SPLITS_AT_ONCE; j++) {
                if (start + j == first_split) {
                    joined = parts[j];
                } else if (start + j < num_splits) {
                    add_split(&joined, parts[j]);
                }
            }
        }
        store_result(args, query, elem, joined.out, joined.sum);
    }
}

// Counts the split of each row of the item; the block that finishes the last one of a row joins them all.
DEVICE void count_split(const AttentionArgs& args, const Item& item) {
    __shared__ int is_last[ROWS_PER_SET];
    __syncthreads();
    if (threadIdx.x < item.num_rows) {
        int row = item.first_row + threadIdx.x;
        int num_splits = num_splits_of(args, item, row) - first_split_of_row(args, item, row);
        int* counter = args.counters + ((i64)row * args.num_groups + item.group) * QUERY_TILES + item.first_query / QUERY_TILE;
        __threadfence();
        is_last[threadIdx.x] = num_splits > 0 && atomicAdd(counter, 1) == num_splits - 1;
        if (is_last[threadIdx.x]) *counter = 0;
    }
    __syncthreads();
    for (int r = 0; r < item.num_rows; r++) {
        if (!is_last[r]) continue;
        __threadfence();
        join_splits(args, item, r * QUERIES_PER_ROW);
    }
}
