#pragma once
// Many rows of logits without top_k and top_p, each read once. Rows are cut into pieces of 1,024 logits, one a warp, and
// all warps of the GPU run at once, take their pieces in the order of rows and know no barrier: logits come by copies
// that do not wait, and while a warp looks for the largest value of one piece it still holds the piece before, whose row
// has its maximum by now. Maxima are words that are 0 until they are there, so no fence has to stand before a flag: it
// would wait for the copies. In the end, when all sums are there, each row is drawn by one warp.

#define MANY_WARPS (MANY_THREADS / 32)
#define PIECE_VECTORS (PIECE_VALUES / 4)
#define PIECE (32 * PIECE_VALUES)
#define STAGE (32 * PIECE_VECTORS)  // in float4

// One warp's part of one row.
struct Piece : Row {
    int idx;
};

// Four neighbouring logits of a row.
struct Quad : Row {
    int first_id;
};

DEVICE int id_of(const Quad& quad, int i) { return quad.first_id + i; }

// A lane has the same place in every 128 logits of a piece.
DEVICE int id_of(const Piece& piece, int vector) { return piece.idx * PIECE + vector * 128 + threadIdx.x % 32 * 4; }

// A warp's way through the pieces of all rows.
struct Cursor {
    int entry;
    int idx;

    DEVICE void advance(const SampleArgs& args, int num_pieces) {
        entry += num_pieces / args.num_chunks;
        idx += num_pieces % args.num_chunks;
        if (idx >= args.num_chunks) idx -= args.num_chunks, entry++;
    }
};

// Starts copying one piece to a stage; each thread copies what it will read. `rows`: of the logits, below 0 for none.
// Past the vocabulary it is minus infinity, so the last piece of a row is copied at once.
DEVICE void fetch(const SampleArgs& args, const Cursor& cursor, float4* stage, const int* rows) {
    if (cursor.entry < args.num_entries && rows[cursor.entry] >= 0) {
        int id = cursor.idx * PIECE + threadIdx.x % 32 * 4;
        const float* from = args.logits + rows[cursor.entry] * args.logits_stride + id;
        if ((cursor.idx + 1) * PIECE <= args.vocab_size) {
            u32 to = (u32)__cvta_generic_to_shared(stage);
#pragma unroll
            for (int v = 0; v < PIECE_VECTORS; v++) {
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + v * 512), "l"(from + v * 128) : "memory");
            }
        } else {
            float* to = (float*)stage;
            for (int i = 0; i < PIECE_VALUES; i++) {
                int v = i / 4, place = v * 128 + i % 4;
                to[place] = id + place < args.vocab_size ? from[place] : NEG_INF;
            }
        }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Whether the values of the row are its logits.
DEVICE bool is_raw(const SampleArgs& args, const Row& row) {
    bool has_penalty = args.seen && args.repetition_penalty != 1.0f;
    return args.temperature == 1.0f && row.generated >= args.min_length && !has_penalty && !args.bias;
}

// Makes the raw logits of a stage, which came with `fetch`, into values.
DEVICE void prepare(const SampleArgs& args, const Piece& piece, float4* stage) {
    if (is_raw(args, piece)) return;
    Quad quad;
    quad.slot = piece.slot, quad.generated = piece.generated;
#pragma unroll 1
    for (int v = 0; v < PIECE_VECTORS; v++) {
        float4 raw = stage[v * 32];
        float values[4] = {raw.x, raw.y, raw.z, raw.w};
        quad.first_id = id_of(piece, v);
        process(args, quad, values);
        stage[v * 32] = make_float4(values[0], values[1], values[2], values[3]);
    }
}

DEVICE void read_stage(const float4* stage, float (&values)[PIECE_VALUES]) {
#pragma unroll
    for (int v = 0; v < PIECE_VECTORS; v++) {
        float4 vector = stage[v * 32];
        values[4 * v] = vector.x, values[4 * v + 1] = vector.y, values[4 * v + 2] = vector.z, values[4 * v + 3] = vector.w;
    }
}

// The largest value of a stage; NaN if any value is, whose key is above all others.
DEVICE u32 stage_max_key(const float4* stage) {
    float values[PIECE_VALUES];
    read_stage(stage, values);
    float max = values[0];
#pragma unroll
    for (int i = 1; i < PIECE_VALUES; i++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(max) : "f"(values[i]));
    return __reduce_max_sync(ALL_LANES, max == max ? key_of(max) : 0xffffffff);
}

// What all pieces of a row have found.
struct RowMaxima {
    float max;
    float raw_max;  // for log-probabilities
    Status status;
};

// The largest of a row's keys, or 0 while one of them is missing. All lanes.
DEVICE u32 max_key(const u32* keys, int num_pieces) {
    u32 max = 0, min = 0xffffffff;
    for (int first = 0; first < num_pieces; first += 128) {
        u32 own[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int idx = ::min(first + 32 * i + (int)threadIdx.x % 32, num_pieces - 1);
            asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(own[i]) : "l"(keys + idx));
        }
#pragma unroll
        for (int i = 0; i < 4; i++) max = ::max(max, own[i]), min = ::min(min, own[i]);
    }
    return __all_sync(ALL_LANES, min != 0) ? __reduce_max_sync(ALL_LANES, max) : 0;
}

DEVICE u32* maxima_of(const SampleArgs& args, int entry) { return args.maxima + (i64)entry * args.num_chunks; }

DEVICE u32* raw_maxima_of(const SampleArgs& args, int entry) { return maxima_of(args, args.num_entries + entry); }

DEVICE float await_max(const u32* keys, int num_pieces) {
    u32 key;
    do {
        key = max_key(keys, num_pieces);
    } while (key == 0);
    return value_of(key);
}

// Waits until all pieces of a row have their maximum.
DEVICE RowMaxima await_maxima(const SampleArgs& args, int entry) {
    RowMaxima row;
    row.max = await_max(maxima_of(args, entry), args.num_chunks);
    row.raw_max = NEG_INF;
    row.status = status_of(row.max, row.max != row.max);
    if (args.compute_logprob) {
        row.raw_max = await_max(raw_maxima_of(args, entry), args.num_chunks);
        if (row.status == CHOSEN) row.status = status_of(row.raw_max, row.raw_max != row.raw_max);
    }
    return row;
}

DEVICE void tell(u32* to, u32 key) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(key) : "memory"); }

// Makes raw logits into values and reports the largest ones to the row.
DEVICE void find_max(const SampleArgs& args, const Piece& piece, float4* stage) {
    u32 raw_key = 0;
    if (args.compute_logprob) raw_key = stage_max_key(stage);
    prepare(args, piece, stage);
    u32 key = stage_max_key(stage);
    if (threadIdx.x % 32 != 0) return;
    tell(maxima_of(args, piece.entry) + piece.idx, key);
    if (args.compute_logprob) tell(raw_maxima_of(args, piece.entry) + piece.idx, raw_key);
}

// Leaves the piece's share of the row's sums in memory.
DEVICE void weigh(const SampleArgs& args, const Piece& piece, const float (&values)[PIECE_VALUES]) {
    RowMaxima row = await_maxima(args, piece.entry);
    i64 own = (i64)piece.entry * args.num_chunks + piece.idx;
    if (row.status == CHOSEN) {
        u64 sum = 0;
#pragma unroll
        for (int i = 0; i < PIECE_VALUES; i++) sum += weight_of(values[i], row.max);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) args.sums[own] = args.raw_sums[own] = sum;
    }
    if (row.status == CHOSEN && args.compute_logprob && !is_raw(args, piece)) {
        const float* raw = args.logits + piece.row * args.logits_stride;
        u64 sum = 0;
#pragma unroll 4
        for (int i = 0; i < PIECE_VALUES; i++) {
            int id = id_of(piece, i / 4) + i % 4;
            if (id < args.vocab_size) sum += weight_of(raw[id], row.raw_max);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) args.raw_sums[own] = sum;
    }
}

// The first value of the piece, in order of id, at which the running weight exceeds `target`; its id. All lanes.
DEVICE int walk(const Piece& piece, const float (&values)[PIECE_VALUES], float max, u64 target) {
    u64 before = 0;
    int id = -1;
#pragma unroll
    for (int v = 0; v < PIECE_VECTORS; v++) {
        u64 weights[4];
#pragma unroll
        for (int i = 0; i < 4; i++) weights[i] = weight_of(values[4 * v + i], max);
        u64 own = weights[0] + weights[1] + weights[2] + weights[3];
        u64 end = before + warp_scan(own), cumulative = end - own;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u64 next = cumulative + weights[i];
            if (cumulative <= target && next > target) id = id_of(piece, v) + i;
            cumulative = next;
        }
        before = __shfl_sync(ALL_LANES, end, 31);
    }
    return __reduce_max_sync(ALL_LANES, id);
}

// Draws a row whose sums are all there: one warp.
DEVICE void draw_row(const SampleArgs& args, int entry, float4* stage, const int* rows) {
    int lane = threadIdx.x % 32;
    Piece piece;
    if (!find_row(args, entry, &piece)) {
        if (lane == 0) refuse(args, piece, SKIPPED);
        return;
    }
    RowMaxima row = await_maxima(args, entry);
    for (int i = lane; i < args.num_chunks; i += 32) maxima_of(args, entry)[i] = raw_maxima_of(args, entry)[i] = 0;
    if (row.status != CHOSEN) {
        if (lane == 0) refuse(args, piece, row.status);
        return;
    }
    u64 target = drawn_target(args, piece), before;
    piece.idx = crossing_chunk(args, piece, args.sums, target, &before);
    fetch(args, Cursor{entry, piece.idx}, stage, rows);
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    prepare(args, piece, stage);
    float values[PIECE_VALUES];
    read_stage(stage, values);
    int token = walk(piece, values, row.max, target - before);
    float logprob = QUIET_NAN;
    if (args.compute_logprob) logprob = log_softmax(args, piece, token, row.raw_max, row_total(args, piece, args.raw_sums));
    if (lane == 0) choose(args, piece, token, logprob);
}

// Grid: blocks that all run at once. Dynamic shared memory: the stages of all warps, and an int for each entry.
// `logits_stride` is a multiple of 4 here.
extern "C" __global__ void __launch_bounds__(MANY_THREADS, MANY_BLOCKS_PER_SM) sample_many(SampleArgs args) {
    extern __shared__ float4 shared[];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float4* stages = shared + warp * MANY_STAGES * STAGE + lane;
    int* rows = (int*)(shared + MANY_WARPS * MANY_STAGES * STAGE);
    for (int entry = threadIdx.x; entry < args.num_entries; entry += MANY_THREADS) {
        Row row;
        rows[entry] = find_row(args, entry, &row) ? (int)row.row : -1;
    }
    __syncthreads();
    int num_warps = gridDim.x * MANY_WARPS;
    Cursor ahead = {0, 0};
    ahead.advance(args, blockIdx.x * MANY_WARPS + warp);
    Cursor cursor = ahead;
#pragma unroll
    for (int s = 0; s < MANY_STAGES; s++) {
        fetch(args, ahead, stages + s * STAGE, rows);
        ahead.advance(args, num_warps);
    }
    Piece held;
    float held_values[PIECE_VALUES] = {};
    held.row = -1;
    for (int s = 0;; s = s + 1 < MANY_STAGES ? s + 1 : 0) {
        float4* stage = stages + s * STAGE;
        Piece piece;
        piece.row = -1;
        bool is_there = cursor.entry < args.num_entries;
        if (is_there) {
            piece.entry = piece.slot = cursor.entry;
            piece.idx = cursor.idx;
            piece.row = rows[cursor.entry];
            piece.generated = 0;
            asm volatile("cp.async.wait_group %0;" ::"n"(MANY_STAGES - 1) : "memory");
            if (piece.row >= 0) {
                if (args.admissions) {
                    piece.slot = args.admissions[piece.entry].slot;
                } else if (args.min_length > 0) {
                    piece.generated = args.num_generated[piece.entry];
                }
                find_max(args, piece, stage);
            }
        }
        if (held.row >= 0) weigh(args, held, held_values);
        if (!is_there) break;
        held = piece;
        read_stage(stage, held_values);
        fetch(args, ahead, stage, rows);
        ahead.advance(args, num_warps);
        cursor.advance(args, num_warps);
    }
    if (lane == 0) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(args.ticket, 1);
    int entry = warp * gridDim.x + blockIdx.x;
    if (entry >= args.num_entries) return;
    if (lane == 0) {
        await(args.ticket, gridDim.x);
        // The last one to get here cleans the counter.
        if (atomicAdd(args.ticket, 1) == gridDim.x + min(args.num_entries, num_warps) - 1) *args.ticket = 0;
    }
    __syncwarp();
    for (; entry < args.num_entries; entry += num_warps) draw_row(args, entry, stages, rows);
}
