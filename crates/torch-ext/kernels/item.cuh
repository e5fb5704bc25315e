#pragma once
// Decode attention over the paged cache.

struct AttentionArgs {
    const T* q;              // T [rows, heads, HEAD_DIM]; or the fused QKV, T [rows, groups, queries + 2, HEAD_DIM]
    T* keys;                 // T [num_blocks, groups, 32, HEAD_DIM], of this layer
    T* values;
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
};

// One split of keys of one group, for the queries of up to ROWS_PER_SET rows; or all splits of one row, one after the other.
struct Item {
    int first_row;
    int num_rows;
    int num_columns; // queries in use; column c is query c % QUERIES_PER_ROW of row first_row + c / QUERIES_PER_ROW
    int first_split;
    int end_split;
    int split;       // at hand, as are the keys
    int first_key;
    int end_key;
    int group;
    int first_query; // within the group
    int context;     // of the first row, as the slot of its own token
    int slot;
};

// Where the warps of a block leave their parts, in shared memory: [NUM_WARPS, QUERY_TILE, HEAD_DIM] and
// [NUM_WARPS, QUERY_TILE]; and, of an item that is a whole row, the splits before: four elements a thread,
// [QUERY_TILE, HEAD_DIM / 4] each.
struct Merge {
    float* outs;
    float2* stats;
    float4* joined_outs;
    float2* joined_stats;
};

// The first of the 16 keys that `warp` takes; it goes on in strides of NUM_WARPS tiles.
DEVICE int first_tile(const Item& item) { return item.first_key + threadIdx.x / 32 * TILE_KEYS; }

// The block that holds position `base`. A table entry outside the cache would be a fault of the host; it must not
// become an access outside the cache.
DEVICE int block_at(const AttentionArgs& args, const Item& item, int base) {
    int block = args.block_tables[(i64)item.first_row * args.table_width + base / BLOCK_SIZE_TOKENS];
    return min(max(block, 0), args.num_blocks - 1);
}

// Elements before the 16 keys that start at position `base`.
DEVICE i64 tile_offset(const AttentionArgs& args, const Item& item, int block, int base) {
    return (((i64)block * args.num_groups + item.group) * BLOCK_SIZE_TOKENS + base % BLOCK_SIZE_TOKENS) * HEAD_DIM;
}

// Whether the token of this step is in the tile: then this thread block has only just written its key and value.
DEVICE bool has_own_token(const Item& item, int base) {
    return item.num_rows == 1 && item.end_key == item.context && base + TILE_KEYS >= item.end_key;
}

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
    return splits_of(context_of(args, item, row));
}

// Whether the item is all that there is of its row.
DEVICE bool is_whole(const Item& item) { return item.num_rows == 1 && item.end_split - item.first_split == splits_of(item.context); }

// Whether the token of this step is among the item's keys.
DEVICE bool ends_row(const Item& item) { return item.num_rows == 1 && item.end_split == splits_of(item.context); }

// The item with its next split at hand.
DEVICE Item next_split(const Item& item) {
    Item next = item;
    next.split++;
    next.first_key = item.end_key;
    next.end_key = min(item.end_key + SPLIT_KEYS, item.context);
    return next;
}
