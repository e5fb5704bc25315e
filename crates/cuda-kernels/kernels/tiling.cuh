#pragma once
// How decode attention is cut into blocks and warps; shared by the kernel that plans and the one that attends.

#define QUERY_TILE (8 * QUERY_COLUMNS)  // queries an item attends with: columns of the MMAs
#define QUERIES_PER_ROW (QUERIES_PER_GROUP < QUERY_TILE ? QUERIES_PER_GROUP : QUERY_TILE)
#define QUERY_TILES ((QUERIES_PER_GROUP + QUERY_TILE - 1) / QUERY_TILE)
#define ROWS_PER_SET (QUERY_TILE / QUERIES_PER_ROW)
#define TILE_KEYS (KV_FP8 && ELEM != 0 ? 32 : 16) // keys that a warp takes at once

// Whether a row sees its last `local_tokens` keys only (IS_LOCAL); whether scores are capped (IS_CAPPED).
DEVICE int window_start(int context, int local_tokens) { return IS_LOCAL ? max(context - local_tokens, 0) : 0; }

// The first split that has keys of a row, and the end of those that have.
DEVICE int first_split_of(int context, int local_tokens) { return window_start(context, local_tokens) / SPLIT_KEYS; }

DEVICE int splits_of(int context) { return (context + SPLIT_KEYS - 1) / SPLIT_KEYS; }
