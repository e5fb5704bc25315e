// Decode attention over the paged cache.

struct AttentionArgs {
    const T* q;              // T [rows, heads, HEAD_DIM]; or the fused QKV, T [rows, groups, queries + 2, HEAD_DIM]
    T* keys;                 // T [num_blocks, groups, 32, HEAD_DIM], of this layer
    T* values;
    T* out;                  // T [rows, heads, HEAD_DIM]
    const int* block_tables; // [rows, table_width]
    const int* slots;        // these four from plan_decode
    const int* contexts;
    const int4* items;
    const int* num_items;
    int* counters;           // [rows, groups, QUERY_TILES], zero between launches
    float* partial_outs;     // [rows, heads, max_splits, HEAD_DIM]
    float2* partial_stats;   // [rows, heads, max_splits]: maximum and sum
    Rotary rotary;
    int num_groups;
    int table_width;
    int num_blocks;
    int max_splits;
    float scale_log2;        // scale of the scores times log2(e)
};

// One split of keys of one group, for the queries of up to ROWS_PER_SET rows.
struct Item {
    int first_row;
    int num_columns; // queries in use; column c is query c % QUERIES_PER_ROW of row first_row + c / QUERIES_PER_ROW
    int split;
    int first_key;
    int end_key;
    int group;
    int first_query; // within the group
};

// Where the warps of a block leave their parts, in shared memory: [NUM_WARPS, QUERY_TILE, HEAD_DIM] and
// [NUM_WARPS, QUERY_TILE].
struct Merge {
    float* outs;
    float2* stats;
};

// Elements before the 16 keys that start at position `base`. A table entry outside the cache would be a fault of the
// host; it must not become an access outside the cache.
DEVICE i64 tile_offset(const AttentionArgs& args, const Item& item, int base) {
    int block = args.block_tables[(i64)item.first_row * args.table_width + base / BLOCK_SIZE_TOKENS];
    block = min(max(block, 0), args.num_blocks - 1);
    return (((i64)block * args.num_groups + item.group) * BLOCK_SIZE_TOKENS + base % BLOCK_SIZE_TOKENS) * HEAD_DIM;
}

