#pragma once
// Decode attention over the paged cache.

#include "cached.cuh"

struct AttentionArgs {
    const T* q;              // T [rows, heads, HEAD_DIM]; or the fused QKV, T [rows, groups, queries + 2, HEAD_DIM]
    Cached* keys;            // of this layer, see `cached.cuh`
    Cached* values;
    T* out;                  // T [rows, heads, HEAD_DIM]
    const int* block_tables; // [rows, table_width]
    const int* slots;        // these four from plan_decode
    const int* contexts;
    const int4* items;       // two an item
    const int* num_items;
    int* counters;           // [rows, groups, QUERY_TILES], zero between launches
    int* tickets;            // [2], zero between launches: works that blocks have asked for, blocks that have ended
    float* partial_outs;     // [rows, heads, max_splits, HEAD_DIM]
    float2* partial_stats;   // [rows, heads, max_splits]: maximum and sum
    Rotary rotary;
    int num_groups;
    int table_width;
    int num_blocks;
    int max_splits;
    int max_items;
    float scale_log2;        // scale of the scores times log2(e)
    int local_tokens;        // that a row sees, where IS_LOCAL
    float cap_log2;          // what scores are capped at times log2(e), where IS_CAPPED
};

// What a thread block does of one group: one split of keys, for the queries of a set of up to ROWS_PER_SET rows; or all
// that a set has to do, one step after the other: the splits that its rows share, then those that each has alone. The
// queries of a set are the columns of the MMAs: QUERIES_PER_ROW for each row.
struct Item {
    int first_row;
    int num_rows;
    int shared_splits; // end of those that all rows attend to
    bool is_whole;
    int group;
    int first_query;   // within the group
    // The step at hand: one split of `row`, whose blocks are read.
    int row;
    bool is_alone;     // else all rows attend, whose first one is `row`
    int split;
    int end_split;
    int context;       // of the row, as the slot of its own token
    int slot;
#if IS_LOCAL
    int window_start;  // the first key that the row sees
#endif
};

// Where the warps of a block leave their parts, in shared memory: [NUM_WARPS, QUERY_TILE, HEAD_DIM] and
// [NUM_WARPS, QUERY_TILE]; and, where an item is whole, what the splits before came to: four elements a thread,
// [QUERY_TILE, HEAD_DIM / 4] each.
struct Merge {
    float* outs;
    float2* stats;
    float4* joined_outs;
    float2* joined_stats;
    float* query_scales; // [QUERY_TILE], where queries are scaled: what a score is multiplied by
};

// A score, in units of log2(e).
DEVICE float capped(float score, float cap_log2) { return IS_CAPPED ? cap_log2 * tanhf(score / cap_log2) : score; }

#if IS_LOCAL

DEVICE int first_split(const Item& item) { return item.window_start / SPLIT_KEYS; }

// The tile of the first key that the row sees is the first one of its split, so that none is all hidden.
DEVICE int first_key(const Item& item) {
    return max(item.split * SPLIT_KEYS, item.window_start / TILE_KEYS * TILE_KEYS);
}

// Keys at the start of a tile that the row does not see.
DEVICE int num_hidden(const Item& item, int base) { return item.window_start - base; }

#else

DEVICE int first_split(const Item&) { return 0; }

DEVICE int first_key(const Item& item) { return item.split * SPLIT_KEYS; }

DEVICE int num_hidden(const Item&, int) { return 0; }

#endif

DEVICE int end_key(const Item& item) { return min(item.split * SPLIT_KEYS + SPLIT_KEYS, item.context); }

// The first of the keys that `warp` takes; it goes on in strides of NUM_WARPS tiles.
DEVICE int first_tile(const Item& item) { return first_key(item) + threadIdx.x / 32 * TILE_KEYS; }

// The block that holds position `base`, or any block where there is none. A table entry outside the cache would be a
// fault of the host; it must not become an access outside the cache.
DEVICE int block_at(const AttentionArgs& args, const Item& item, int base) {
    int idx = min(base / BLOCK_SIZE_TOKENS, args.table_width - 1);
    int block = args.block_tables[(i64)item.row * args.table_width + idx];
    return min(max(block, 0), args.num_blocks - 1);
}

// Elements before the keys of a tile, which start at position `base`.
DEVICE i64 tile_offset(const AttentionArgs& args, const Item& item, int block, int base) {
    return head_block(args.num_groups, block, item.group) + base % BLOCK_SIZE_TOKENS * HEAD_DIM;
}

// Whether the token of this step is in the tile: then this thread block has only just written its key and value.
DEVICE bool has_own_token(const Item& item, int base) {
    return item.is_alone && end_key(item) == item.context && base + TILE_KEYS >= item.context;
}

// Queries of one row.
DEVICE int columns_of_row(const Item& item) { return min(QUERIES_PER_ROW, QUERIES_PER_GROUP - item.first_query); }

// The columns whose rows attend in the step at hand.
DEVICE int first_column(const Item& item) { return (item.row - item.first_row) * QUERIES_PER_ROW; }

DEVICE int end_column(const Item& item) {
    return item.is_alone ? first_column(item) + columns_of_row(item) : item.num_rows * QUERIES_PER_ROW;
}

DEVICE int head_of(const Item& item, int column) {
    return item.group * QUERIES_PER_GROUP + item.first_query + column % QUERIES_PER_ROW;
}

DEVICE int row_of(const Item& item, int column) { return item.first_row + column / QUERIES_PER_ROW; }

DEVICE i64 query_of(const AttentionArgs& args, const Item& item, int column) {
    return (i64)row_of(item, column) * args.num_groups * QUERIES_PER_GROUP + head_of(item, column);
}

DEVICE int context_of(const AttentionArgs& args, const Item& item, int row) {
    return row == item.row ? item.context : args.contexts[row];
}

DEVICE int num_splits_of(const AttentionArgs& args, const Item& item, int row) {
    return splits_of(context_of(args, item, row));
}

DEVICE int first_split_of_row(const AttentionArgs& args, const Item& item, int row) {
    return first_split_of(context_of(args, item, row), args.local_tokens);
}

// Whether the tokens of this step, one of each row, are among the item's keys.
DEVICE bool has_own_tokens(const Item& item) {
    return item.is_whole || (item.is_alone && end_key(item) == item.context);
}

DEVICE bool is_first_step(const Item& item) {
    return !item.is_whole || (item.split == first_split(item) && item.row == item.first_row);
}

DEVICE bool is_last_step(const Item& item) {
    bool ends_row = item.split + 1 == item.end_split;
    return !item.is_whole || (ends_row && item.is_alone && item.row + 1 == item.first_row + item.num_rows);
}

DEVICE Item next_step(const AttentionArgs& args, const Item& item) {
    Item next = item;
    if (item.split + 1 < item.end_split) {
        next.split++;
        return next;
    }
    next.row = item.is_alone ? item.row + 1 : item.first_row;
    next.is_alone = true;
    next.split = item.shared_splits;
    next.context = args.contexts[next.row];
    next.slot = args.slots[next.row];
    next.end_split = splits_of(next.context);
#if IS_LOCAL
    next.window_start = window_start(next.context, args.local_tokens);
#endif
    return next;
}
