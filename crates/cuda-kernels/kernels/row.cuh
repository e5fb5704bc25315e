#pragma once
// One row of logits over several thread blocks: what each holds, and how they wait for each other.

#define CHUNK (SAMPLE_THREADS * SAMPLE_VALUES)
#define SAMPLE_WARPS (SAMPLE_THREADS / 32)
#define NUM_SLABS (SAMPLE_VALUES / 4)
#define ALL_LANES 0xffffffff

enum Status { CHOSEN, HAS_NAN, HAS_INFINITY, HAS_NO_TOKEN, SKIPPED };

// 32 bytes: the first token of a response, drawn from a row of prefill logits.
struct Admission {
    int logits_row;
    int slot;      // below 0: nothing to do
    int position;  // where the drawn token will stand: the prompt's length
    u32 response_idx;
    u64 sample_idx;
    u64 reserved;
};

struct Sampled {
    int token;
    float logprob;
    int status;
    u32 num_generated;
};

struct ChunkStats {
    float max;
    int id;        // the lowest one of the largest value; found only when greedy
    float raw_max; // before anything is done to the logits; found only for log-probabilities
    u32 has_nan;
};

struct SampleArgs {
    const float* logits;         // [num_logits_rows, logits_stride]
    const int* end_token_ids;
    const Admission* admissions; // [entries], or null in decode, where entry, slot and row are the same
    int* tokens;                 // these by slot
    int* positions;
    u32* num_generated;
    u64* sample_idxs;
    u32* response_idxs;
    u32* seen;                   // [num_slots, ceil(vocab_size / 32)], or null
    Sampled* out;                // [entries]
    u32* ticket;                 // 0 between launches, as the arrivals
    u32* arrivals;               // [entries]
    u32* maxima;                 // [2, entries, chunks]: keys of the largest values, then of raw ones; 0 between launches
    ChunkStats* stats;           // these [entries, chunks]
    u64* sums;
    u64* raw_sums;
    u64* ties;
    u64* histograms;             // [entries, NUM_HISTOGRAMS, NUM_BINS], for top_k and top_p
    const float* bias;           // [vocab_size], added to the logits before everything else, or null
    const int* row_rules;        // [num_slots, ROW_RULE_WORDS]: rules of rows' own, or null
    const int* mask_of_entry;    // [entries]: which of the masks, below 0 for none; where there are masks
    const u32* masks;            // [num_masks, ceil(vocab_size / 32)]: bits of the tokens that may be chosen, or null
    const int* forced_tokens;    // texts that are known, one after the other: their tokens are chosen, or null
    const i64* forced_starts;    // [num_forced + 1]: where the text of each sample begins, and where the last one ends
    u64 seed;
    i64 logits_stride;
    i64 num_forced;
    int num_logits_rows;
    int num_slots;
    int num_entries;
    int vocab_size;
    int num_chunks;
    int num_end_tokens;
    u32 min_length;
    u32 top_k;                   // 0: off
    float top_p;                 // 0: off
    float temperature;
    float repetition_penalty;
    float min_p;                 // 0: off
    int use_greedy;
    int compute_logprob;
};

// What is drawn from which logits, and for whom.
struct Row {
    int entry;
    int slot;
    u32 generated;
    i64 row;  // of the logits
};

// One block's part of one row.
struct Chunk : Row {
    int idx;
    u32* arrivals;
    u32 num_waited_for;
};

DEVICE int id_of(const Chunk& chunk, int i) {
    return chunk.idx * CHUNK + ((i / 4) * SAMPLE_THREADS + threadIdx.x) * 4 + i % 4;
}

// Reads the block's part of the row; past the vocabulary it is minus infinity.
DEVICE void read_logits(const SampleArgs& args, const Chunk& chunk, float (&values)[SAMPLE_VALUES]) {
    const float* row = args.logits + chunk.row * args.logits_stride;
    if (args.logits_stride % 4 == 0) {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i += 4) {
            int id = id_of(chunk, i);
            float4 v = make_float4(NEG_INF, NEG_INF, NEG_INF, NEG_INF);
            if (id < args.vocab_size) v = *(const float4*)(row + id);
            values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            int id = id_of(chunk, i);
            values[i] = id < args.vocab_size ? row[id] : NEG_INF;
        }
    }
    if ((chunk.idx + 1) * CHUNK > args.vocab_size) {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            if (id_of(chunk, i) >= args.vocab_size) values[i] = NEG_INF;
        }
    }
}

// Bias, mask, minimum length, temperature, repetition penalty, in this order. Part: a Chunk, or a Piece (`many.cuh`).
template <class Part, int NUM_VALUES>
DEVICE void process(const SampleArgs& args, const Part& part, float (&values)[NUM_VALUES]) {
    if (args.bias) {
#pragma unroll
        for (int i = 0; i < NUM_VALUES; i++) {
            int id = id_of(part, i);
            if (id < args.vocab_size) values[i] = __fadd_rn(values[i], args.bias[id]);
        }
    }
#if SAMPLE_OWN_RULES
    int mask = args.masks ? args.mask_of_entry[part.entry] : -1;
    if (mask >= 0) {
        const u32* allowed = args.masks + (i64)mask * ((args.vocab_size + 31) / 32);
#pragma unroll
        for (int i = 0; i < NUM_VALUES; i += 4) {
            int id = id_of(part, i);
            if (id >= args.vocab_size) continue;
            u32 bits = allowed[id / 32] >> (id % 32) & 15;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (!(bits >> j & 1)) values[i + j] = NEG_INF;
            }
        }
    }
#endif
    if (part.generated < args.min_length) {
        for (int e = 0; e < args.num_end_tokens; e++) {
            int id = args.end_token_ids[e];
#pragma unroll
            for (int i = 0; i < NUM_VALUES; i++) {
                if (id_of(part, i) == id) values[i] = NEG_INF;
            }
        }
    }
    if (args.use_greedy) return;
    if (args.temperature != 1.0f) {
#pragma unroll
        for (int i = 0; i < NUM_VALUES; i++) values[i] = __fdiv_rn(values[i], args.temperature);
    }
    if (args.seen && args.repetition_penalty != 1.0f) {
        const u32* seen = args.seen + (i64)part.slot * ((args.vocab_size + 31) / 32);
#pragma unroll
        for (int i = 0; i < NUM_VALUES; i += 4) {
            int id = id_of(part, i);
            if (id >= args.vocab_size) continue;
            u32 bits = seen[id / 32] >> (id % 32) & 15;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (!(bits >> j & 1)) continue;
                float value = values[i + j];
                values[i + j] = value > 0.0f ? __fdiv_rn(value, args.repetition_penalty) : __fmul_rn(value, args.repetition_penalty);
            }
        }
    }
}

DEVICE u64 shuffle_xor(u64 value, int lanes) { return __shfl_xor_sync(ALL_LANES, value, lanes); }

DEVICE u64 warp_sum(u64 value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
    return value;
}

// Inclusive.
DEVICE u64 warp_scan(u64 value) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        u64 before = __shfl_up_sync(ALL_LANES, value, lanes);
        if (lane >= lanes) value += before;
    }
    return value;
}

// Shared memory of the block's helpers; each ends with a barrier, so the next may use it.
struct Scratch {
    u64 slabs[NUM_SLABS][SAMPLE_WARPS];
    u64 warps[SAMPLE_WARPS];
    u64 found[2];
    ChunkStats stats[SAMPLE_WARPS];
};

DEVICE u64 block_sum(u64 value, Scratch* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) scratch->warps[threadIdx.x / 32] = value;
    __syncthreads();
    u64 sum = 0;
#pragma unroll
    for (int warp = 0; warp < SAMPLE_WARPS; warp++) sum += scratch->warps[warp];
    __syncthreads();
    return sum;
}

DEVICE ChunkStats better(const ChunkStats& a, const ChunkStats& b) {
    ChunkStats best = b.max > a.max || (b.max == a.max && b.id < a.id) ? b : a;
    best.raw_max = fmaxf(a.raw_max, b.raw_max);
    best.has_nan = a.has_nan | b.has_nan;
    return best;
}

DEVICE ChunkStats warp_best(ChunkStats stats) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        ChunkStats other;
        other.max = __shfl_xor_sync(ALL_LANES, stats.max, lanes);
        other.id = __shfl_xor_sync(ALL_LANES, stats.id, lanes);
        other.raw_max = __shfl_xor_sync(ALL_LANES, stats.raw_max, lanes);
        other.has_nan = __shfl_xor_sync(ALL_LANES, stats.has_nan, lanes);
        stats = better(stats, other);
    }
    return stats;
}

// Waits until a counter is there. One thread calls this.
DEVICE void await(const u32* arrivals, u32 num_waited_for) {
    u32 arrived;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(arrivals) : "memory");
    } while (arrived < num_waited_for);
}

// Announces what this block has written and waits until all blocks of the row have.
DEVICE void wait_for_row(const SampleArgs& args, Chunk* chunk) {
    __threadfence();
    __syncthreads();
    chunk->num_waited_for += args.num_chunks;
    if (threadIdx.x == 0) {
        atomicAdd(chunk->arrivals, 1);
        await(chunk->arrivals, chunk->num_waited_for);
    }
    __syncthreads();
}

// The last block to leave the row cleans the counter; true for all its threads.
DEVICE bool leave_row(const SampleArgs& args, const Chunk& chunk) {
    __shared__ bool is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(chunk.arrivals, 1) + 1 == chunk.num_waited_for + args.num_chunks;
        if (is_last) *chunk.arrivals = 0;
        __threadfence();
    }
    __syncthreads();
    return is_last;
}

#define NO_STATS {NEG_INF, 0x7fffffff, NEG_INF, 0}

DEVICE ChunkStats row_stats(const SampleArgs& args, const Chunk& chunk) {
    ChunkStats stats = NO_STATS;
    for (int i = threadIdx.x % 32; i < args.num_chunks; i += 32) {
        uint4 raw = __ldcg((const uint4*)(args.stats + (i64)chunk.entry * args.num_chunks + i));
        ChunkStats other = {__uint_as_float(raw.x), (int)raw.y, __uint_as_float(raw.z), raw.w};
        stats = better(stats, other);
    }
    return warp_best(stats);
}

// Adds a thread's processed values to what it has of the row.
DEVICE void add_stats(const SampleArgs& args, const Chunk& chunk, const float (&values)[SAMPLE_VALUES], ChunkStats* to) {
    ChunkStats& stats = *to;
    if (args.use_greedy) {
        int best = -1;
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            if (values[i] > stats.max) stats.max = values[i], best = i;
        }
        if (best >= 0) stats.id = id_of(chunk, best);
    } else {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) stats.max = fmaxf(stats.max, values[i]);
    }
#pragma unroll
    for (int i = 0; i < SAMPLE_VALUES; i++) stats.has_nan |= values[i] != values[i];
}

// The same of raw values, for log-probabilities.
DEVICE void add_raw_stats(const float (&values)[SAMPLE_VALUES], ChunkStats* stats) {
#pragma unroll
    for (int i = 0; i < SAMPLE_VALUES; i++) {
        stats->raw_max = fmaxf(stats->raw_max, values[i]);
        stats->has_nan |= values[i] != values[i];
    }
}

DEVICE ChunkStats block_best(ChunkStats stats, Scratch* scratch) {
    stats = warp_best(stats);
    if (threadIdx.x % 32 == 0) scratch->stats[threadIdx.x / 32] = stats;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < SAMPLE_WARPS; warp++) stats = better(stats, scratch->stats[warp]);
    return stats;
}

DEVICE Status status_of(float max, u32 has_nan) {
    if (has_nan) return HAS_NAN;
    if (max == -NEG_INF) return HAS_INFINITY;
    return max == NEG_INF ? HAS_NO_TOKEN : CHOSEN;
}

// Which values may still be drawn.
struct Kept {
    u32 least_key;  // top_k: from here up
    u32 last_key;   // top_p: above it, or equal and an id up to the last one
    int last_id;
};

DEVICE bool keeps(const Kept& kept, u32 key, int id) {
    return key >= kept.least_key && (key > kept.last_key || (key == kept.last_key && id <= kept.last_id));
}

// The first value of the block, in order of id, at which the running amount exceeds `target`; its id. All threads.
template <class Amount>
DEVICE int walk(const Chunk& chunk, Amount amount, u64 target, Scratch* scratch) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int slab = 0; slab < NUM_SLABS; slab++) {
        u64 sum = warp_sum(amount(4 * slab) + amount(4 * slab + 1) + amount(4 * slab + 2) + amount(4 * slab + 3));
        if (lane == 0) scratch->slabs[slab][warp] = sum;
    }
    __syncthreads();
    u64 before = 0;
#pragma unroll
    for (int slab = 0; slab < NUM_SLABS; slab++) {
        u64 before_warp = 0, sum = 0;
#pragma unroll
        for (int other = 0; other < SAMPLE_WARPS; other++) {
            if (other == warp) before_warp = sum;
            sum += scratch->slabs[slab][other];
        }
        if (before <= target && before + sum > target) {
            u64 own = amount(4 * slab) + amount(4 * slab + 1) + amount(4 * slab + 2) + amount(4 * slab + 3);
            u64 cumulative = before + before_warp + warp_scan(own) - own;
#pragma unroll
            for (int i = 4 * slab; i < 4 * slab + 4; i++) {
                u64 next = cumulative + amount(i);
                if (cumulative <= target && next > target) scratch->found[0] = id_of(chunk, i);
                cumulative = next;
            }
        }
        before += sum;
    }
    __syncthreads();
    int id = (int)scratch->found[0];
    __syncthreads();
    return id;
}

DEVICE u64 row_total(const SampleArgs& args, const Row& row, const u64* sums) {
    u64 total = 0;
    for (int i = threadIdx.x % 32; i < args.num_chunks; i += 32) total += __ldcg(sums + (i64)row.entry * args.num_chunks + i);
    return warp_sum(total);
}

// What the chunks before this one have.
DEVICE u64 row_before(const SampleArgs& args, const Chunk& chunk, const u64* sums) {
    u64 before = 0;
    for (int i = threadIdx.x % 32; i < chunk.idx; i += 32) before += __ldcg(sums + (i64)chunk.entry * args.num_chunks + i);
    return warp_sum(before);
}

// The chunk in which the running sum exceeds `target`, which is below the total, and the sum before it.
DEVICE int crossing_chunk(const SampleArgs& args, const Row& row, const u64* sums, u64 target, u64* before) {
    int lane = threadIdx.x % 32;
    u64 cumulative = 0;
    for (int start = 0;; start += 32) {
        u64 own = start + lane < args.num_chunks ? __ldcg(sums + (i64)row.entry * args.num_chunks + start + lane) : 0;
        u64 end = cumulative + warp_scan(own);
        u32 past = __ballot_sync(ALL_LANES, end > target);
        if (past != 0 || start + 32 >= args.num_chunks) {
            int first = past != 0 ? __ffs(past) - 1 : 31;
            *before = __shfl_sync(ALL_LANES, end - own, first);
            return min(start + first, args.num_chunks - 1);
        }
        cumulative = __shfl_sync(ALL_LANES, end, 31);
    }
}
