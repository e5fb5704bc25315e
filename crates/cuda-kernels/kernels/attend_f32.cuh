#pragma once
// The keys of one warp in float32, on the ordinary cores: the kernel that results are compared with, not a fast one.

// Nothing is fetched ahead.
struct FirstTile {};

DEVICE void fetch_first_tile(const AttentionArgs&, const Item&, int, FirstTile*) {}

// Attends with every query of the tile to the tiles `warp`, `warp + NUM_WARPS`, .. of the split, and leaves the
// unnormalised sum of values, the maximum and the sum of exponentials of each in `merge`.
DEVICE void attend_warp(const AttentionArgs& args, const Item& item, const T* queries, FirstTile*, const Merge& merge) {
    const int ELEMS = (HEAD_DIM + 31) / 32;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int end = end_key(item);
    for (int column = first_column(item); column < end_column(item); column++) {
        const T* query = queries + column * HEAD_DIM;
        float max = NEG_INF, sum = 0.0f, out[ELEMS] = {};
        for (int base = first_tile(item); base < end; base += NUM_WARPS * TILE_KEYS) {
            int block = block_at(args, item, base);
            const Cached* keys = args.keys + head_block(args.num_groups, block, item.group);
            const Cached* values = args.values + head_block(args.num_groups, block, item.group);
            int first = base % BLOCK_SIZE_TOKENS;
            // Two lanes share a key, each takes half of the head.
            int key = lane % TILE_KEYS, half = lane / TILE_KEYS * (HEAD_DIM / 2);
            float score = 0.0f;
            for (int i = half; i < half + HEAD_DIM / 2; i += 2) {
                float elems[2];
                read_head(keys, first + key, i, elems);
                score += elems[0] * query[i];
                score += elems[1] * query[i + 1];
            }
            score += __shfl_xor_sync(0xffffffff, score, TILE_KEYS);
            bool is_seen = base + key < end && (!IS_LOCAL || key >= num_hidden(item, base));
            score = is_seen ? capped(score * args.scale_log2, args.cap_log2) : NEG_INF;
            float tile_max = score;
#pragma unroll
            for (int lanes = TILE_KEYS / 2; lanes > 0; lanes /= 2) {
                tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, lanes));
            }
            float new_max = fmaxf(max, tile_max);
            float shrink = exp2f(max - new_max);
            float weight = exp2f(score - new_max);
            max = new_max;
            float tile_sum = lane < TILE_KEYS ? weight : 0.0f;
            sum = sum * shrink + warp_sum(tile_sum);
#pragma unroll
            for (int j = 0; j < ELEMS; j++) out[j] *= shrink;
            for (int k = 0; k < TILE_KEYS; k++) {
                float weight_of_key = __shfl_sync(0xffffffff, weight, k);
                if (base + k >= end) break;
#pragma unroll
                for (int j = 0; j < ELEMS; j++) {
                    int i = j * 32 + lane;
                    if (i < HEAD_DIM) out[j] += weight_of_key * read_elem(values, first + k, i);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < ELEMS; j++) {
            int i = j * 32 + lane;
            if (i < HEAD_DIM) merge.outs[(warp * QUERY_TILE + column) * HEAD_DIM + i] = out[j];
        }
        if (lane == 0) merge.stats[warp * QUERY_TILE + column] = make_float2(max, sum);
    }
}
