// Logits to tokens, token for token what the reference sampler of the sampling crate draws.
//
// Weights are exp(value - max) rounded to multiples of 2^-34 and held as integers, so sums are exact in any order, over
// any number of thread blocks. All float arithmetic that decides a token is written with explicit roundings: fused
// multiply-adds would give other bits than the CPU.
//
// A row is cut into chunks, one a thread block, whose values stay in registers from the one read of the logits to the
// draw. Blocks of a row wait for each other at a counter in global memory; they take their chunks in the order in which
// they start (`ticket`), so whoever is waited for is running.

#define CHUNK (SAMPLE_THREADS * SAMPLE_VALUES)
#define SAMPLE_WARPS (SAMPLE_THREADS / 32)
#define NUM_SLABS (SAMPLE_VALUES / 4)
#define NUM_BINS 2048
#define NUM_HISTOGRAMS 3
#define BINS_PER_UNIT 64.0f
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
    ChunkStats* stats;           // these [entries, chunks]
    u64* sums;
    u64* raw_sums;
    u64* ties;
    u64* histograms;             // [entries, NUM_HISTOGRAMS, NUM_BINS], or null without top_k and top_p
    u64 seed;
    i64 logits_stride;
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
    int use_greedy;
    int compute_logprob;
};

// One block's part of one row.
struct Chunk {
    int entry;
    int slot;
    int idx;
    u32 generated;
    i64 row;
    u32* arrivals;
    u32 num_waited_for;
};

DEVICE u32 key_of(float value) {
    u32 bits = __float_as_uint(__fadd_rn(value, 0.0f)); // both zeros are one value
    return bits ^ ((int)bits < 0 ? 0xffffffff : 0x80000000);
}

DEVICE float value_of(u32 key) { return __uint_as_float(key & 0x80000000 ? key ^ 0x80000000 : ~key); }

// exp(x) for x <= 0, the bits of the CPU's.
DEVICE float exp_nonpositive(float x) {
    x = x > -80.0f ? x : -80.0f;
    float shifted = __fadd_rn(__fmul_rn(x, 1.44269504088896340736f), 12582912.0f);
    float exponent = __fsub_rn(shifted, 12582912.0f);
    float r = __fsub_rn(__fsub_rn(x, __fmul_rn(exponent, 0.6933594f)), __fmul_rn(exponent, -2.1219444e-4f));
    float poly = 1.9875691e-4f;
    const float coefficients[5] = {1.3981999e-3f, 8.333452e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f};
#pragma unroll
    for (int i = 0; i < 5; i++) poly = __fadd_rn(__fmul_rn(poly, r), coefficients[i]);
    float mantissa = __fadd_rn(__fadd_rn(__fmul_rn(poly, __fmul_rn(r, r)), r), 1.0f);
    return __fmul_rn(mantissa, __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23)));
}

// In units of 2^-34.
DEVICE u64 weight_of(float value, float max) {
    return __float2ull_rn(__fmul_rn(exp_nonpositive(__fsub_rn(value, max)), 17179869184.0f));
}

// The largest integer that a sum may reach without exceeding `fraction` of `total`.
DEVICE u64 target_of(double fraction, u64 total) {
    u64 target = __double2ull_rd(__dmul_rn(fraction, __ull2double_rn(total)));
    return target < total ? target : total - 1;
}

// Philox4x32-10 with the counter and key of the sampling crate: 53 bits in [0, 1).
DEVICE double uniform(u64 seed, u64 sample_idx, u32 response_idx, u32 token_idx) {
    u32 counter[4] = {response_idx, token_idx, (u32)(seed >> 32), (u32)(sample_idx >> 32)};
    u32 key[2] = {(u32)seed, (u32)sample_idx};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 product0 = (u64)0xD2511F53u * counter[0], product1 = (u64)0xCD9E8D57u * counter[2];
        counter[0] = (u32)(product1 >> 32) ^ counter[1] ^ key[0];
        counter[1] = (u32)product1;
        counter[2] = (u32)(product0 >> 32) ^ counter[3] ^ key[1];
        counter[3] = (u32)product0;
        key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
    }
    u64 bits = ((u64)counter[0] << 32 | counter[1]) >> 11;
    return __dmul_rn(__ull2double_rn(bits), 1.0 / 9007199254740992.0);
}

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

// Minimum length, temperature, repetition penalty, in this order.
DEVICE void process(const SampleArgs& args, const Chunk& chunk, float (&values)[SAMPLE_VALUES]) {
    if (chunk.generated < args.min_length) {
        for (int e = 0; e < args.num_end_tokens; e++) {
            int id = args.end_token_ids[e];
#pragma unroll
            for (int i = 0; i < SAMPLE_VALUES; i++) {
                if (id_of(chunk, i) == id) values[i] = NEG_INF;
            }
        }
    }
    if (args.use_greedy) return;
    if (args.temperature != 1.0f) {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) values[i] = __fdiv_rn(values[i], args.temperature);
    }
    if (args.seen && args.repetition_penalty != 1.0f) {
        const u32* seen = args.seen + (i64)chunk.slot * ((args.vocab_size + 31) / 32);
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i += 4) {
            int id = id_of(chunk, i);
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

// The low and the high words of the block's histogram: shared memory adds 32 bits at once, 64 only in a loop.
struct FilterScratch : Scratch {
    u32 low[NUM_BINS];
    u32 high[NUM_BINS];
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

// Announces what this block has written and waits until all blocks of the row have.
DEVICE void wait_for_row(const SampleArgs& args, Chunk* chunk) {
    __threadfence();
    __syncthreads();
    chunk->num_waited_for += args.num_chunks;
    if (threadIdx.x == 0) {
        atomicAdd(chunk->arrivals, 1);
        u32 arrived;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(chunk->arrivals) : "memory");
        } while (arrived < chunk->num_waited_for);
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

DEVICE ChunkStats row_stats(const SampleArgs& args, const Chunk& chunk) {
    ChunkStats stats = {NEG_INF, 0x7fffffff, NEG_INF, 0};
    for (int i = threadIdx.x % 32; i < args.num_chunks; i += 32) {
        uint4 raw = __ldcg((const uint4*)(args.stats + (i64)chunk.entry * args.num_chunks + i));
        ChunkStats other = {__uint_as_float(raw.x), (int)raw.y, __uint_as_float(raw.z), raw.w};
        stats = better(stats, other);
    }
    return warp_best(stats);
}

DEVICE ChunkStats chunk_stats(
    const SampleArgs& args, const Chunk& chunk, float (&values)[SAMPLE_VALUES], float raw_max, u32 has_nan, Scratch* scratch) {
    ChunkStats stats = {NEG_INF, 0x7fffffff, raw_max, has_nan};
    if (args.use_greedy) {
        int best = 0;
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            if (values[i] > stats.max) stats.max = values[i], best = i;
        }
        stats.id = id_of(chunk, best);
    } else {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) stats.max = fmaxf(stats.max, values[i]);
    }
#pragma unroll
    for (int i = 0; i < SAMPLE_VALUES; i++) stats.has_nan |= values[i] != values[i];
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

// What lies before this block's part of the row in `sums`, and the whole.
DEVICE void row_prefix(const SampleArgs& args, const Chunk& chunk, const u64* sums, u64* before, u64* total) {
    u64 all = 0, earlier = 0;
    for (int i = threadIdx.x % 32; i < args.num_chunks; i += 32) {
        u64 sum = __ldcg(sums + (i64)chunk.entry * args.num_chunks + i);
        all += sum;
        if (i < chunk.idx) earlier += sum;
    }
    *before = warp_sum(earlier);
    *total = warp_sum(all);
}

DEVICE u64* histogram_of(const SampleArgs& args, const Chunk& chunk, int round) {
    return args.histograms + ((i64)chunk.entry * NUM_HISTOGRAMS + round % NUM_HISTOGRAMS) * NUM_BINS;
}

// Clears this block's share of the histogram of a later round; nobody reads it in this one.
DEVICE void clear_histogram(const SampleArgs& args, const Chunk& chunk, int round) {
    u64* histogram = histogram_of(args, chunk, round);
    for (int i = chunk.idx * SAMPLE_THREADS + threadIdx.x; i < NUM_BINS; i += args.num_chunks * SAMPLE_THREADS) histogram[i] = 0;
}

// The bin at which the running amount exceeds `target`, and the amount before it. All threads.
DEVICE int crossing_bin(const u64* histogram, u64 target, u64* before, Scratch* scratch) {
    const int BINS = NUM_BINS / SAMPLE_THREADS;
    int warp = threadIdx.x / 32;
    u64 bins[BINS], own = 0;
#pragma unroll
    for (int i = 0; i < BINS; i++) own += bins[i] = __ldcg(histogram + threadIdx.x * BINS + i);
    u64 end = warp_scan(own);
    if (threadIdx.x % 32 == 31) scratch->warps[warp] = end;
    __syncthreads();
    u64 cumulative = *before + end - own;
    for (int other = 0; other < warp; other++) cumulative += scratch->warps[other];
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        if (cumulative <= target && cumulative + bins[i] > target) {
            scratch->found[0] = threadIdx.x * BINS + i;
            scratch->found[1] = cumulative;
        }
        cumulative += bins[i];
    }
    __syncthreads();
    int bin = (int)scratch->found[0];
    *before = scratch->found[1];
    __syncthreads();
    return bin;
}

DEVICE u64 histogram_total(const u64* histogram, Scratch* scratch) {
    u64 own = 0;
    for (int i = threadIdx.x; i < NUM_BINS; i += SAMPLE_THREADS) own += __ldcg(histogram + i);
    return block_sum(own, scratch);
}

DEVICE u32 distance_bin(float value, float max) {
    float distance = __fmul_rn(__fsub_rn(max, value), BINS_PER_UNIT);
    return distance < (float)(NUM_BINS - 1) ? (u32)__float2int_rn(distance) : NUM_BINS - 1;
}

// What a search counts: tokens, or their weights.
enum Measure { TOKENS, WEIGHTS };

struct Selection {
    u32 key;      // of the value at which the running amount, from the largest value down, exceeds the target
    u64 before;   // the amount of all larger values
    u64 target;
};

// Adds the kept values for which `bin_of` gives a bin (below NUM_BINS) to the row's histogram of this round.
template <class Bin>
DEVICE void fill_histogram(
    const SampleArgs& args, Chunk* chunk, const float (&values)[SAMPLE_VALUES], float max, const Kept& kept, Measure measure, int round,
    FilterScratch* scratch, Bin bin_of) {
    for (int i = threadIdx.x; i < NUM_BINS; i += SAMPLE_THREADS) scratch->low[i] = scratch->high[i] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SAMPLE_VALUES; i++) {
        u32 key = key_of(values[i]);
        u32 bin = bin_of(values[i], key);
        if (bin >= NUM_BINS || !keeps(kept, key, id_of(*chunk, i))) continue;
        u64 amount = measure == TOKENS ? 1 : weight_of(values[i], max);
        u32 low = (u32)amount, high = (u32)(amount >> 32);
        if (low > 0) high += atomicAdd(scratch->low + bin, low) > 0xffffffff - low;
        if (high > 0) atomicAdd(scratch->high + bin, high);
    }
    __syncthreads();
    u64* histogram = histogram_of(args, *chunk, round);
    for (int i = threadIdx.x; i < NUM_BINS; i += SAMPLE_THREADS) {
        u64 amount = (u64)scratch->high[i] << 32 | scratch->low[i];
        if (amount > 0) atomicAdd(histogram + i, amount);
    }
    clear_histogram(args, *chunk, round + 1);
    wait_for_row(args, chunk);
}

// Finds where the running amount exceeds a target: `rank` tokens, or the fraction top_p of all weights. One round over
// distances from the maximum, where logits spread well, then three over the bits of the keys of one bin.
DEVICE Selection select(
    const SampleArgs& args, Chunk* chunk, const float (&values)[SAMPLE_VALUES], float max, const Kept& kept, Measure measure, int* round,
    FilterScratch* scratch) {
    fill_histogram(args, chunk, values, max, kept, measure, *round, scratch, [&](float value, u32) { return distance_bin(value, max); });
    u64* histogram = histogram_of(args, *chunk, *round);
    Selection selection = {0, 0, args.top_k - 1};
    if (measure == WEIGHTS) selection.target = target_of((double)args.top_p, histogram_total(histogram, scratch));
    u32 distance = crossing_bin(histogram, selection.target, &selection.before, scratch);
    *round += 1;
    int shift = 32;
    for (int bits = 11; shift > 0; bits = shift < bits ? shift : bits) {
        int next_shift = shift - bits;
        u32 prefix = selection.key;
        u32 last_bin = (1u << bits) - 1;
        fill_histogram(args, chunk, values, max, kept, measure, *round, scratch, [&](float value, u32 key) -> u32 {
            bool is_inside = distance_bin(value, max) == distance && (shift == 32 || key >> shift == prefix >> shift);
            return is_inside ? last_bin - (key >> next_shift & last_bin) : NUM_BINS;
        });
        u32 bin = crossing_bin(histogram_of(args, *chunk, *round), selection.target, &selection.before, scratch);
        selection.key |= (last_bin - bin) << next_shift;
        *round += 1;
        shift = next_shift;
    }
    return selection;
}

// Leaves the smallest prefix, by value and then by id, whose weight exceeds top_p of all.
DEVICE void apply_top_p(
    const SampleArgs& args, Chunk* chunk, const float (&values)[SAMPLE_VALUES], float max, Kept* kept, int* round, FilterScratch* scratch) {
    Selection selection = select(args, chunk, values, max, *kept, WEIGHTS, round, scratch);
    u64 num_kept_ties = (selection.target - selection.before) / weight_of(value_of(selection.key), max) + 1;
    u64 own_ties = 0;
#pragma unroll
    for (int i = 0; i < SAMPLE_VALUES; i++) own_ties += key_of(values[i]) == selection.key;
    own_ties = block_sum(own_ties, scratch);
    if (threadIdx.x == 0) args.ties[(i64)chunk->entry * args.num_chunks + chunk->idx] = own_ties;
    clear_histogram(args, *chunk, *round + 1);
    wait_for_row(args, chunk);
    *round += 1;
    u64 ties_before, num_ties;
    row_prefix(args, *chunk, args.ties, &ties_before, &num_ties);
    kept->last_key = selection.key;
    kept->last_id = 0x7fffffff;
    if (num_kept_ties <= ties_before) {
        kept->last_id = -1;
    } else if (num_kept_ties < ties_before + own_ties) {
        auto is_tie = [&](int i) -> u64 { return key_of(values[i]) == selection.key; };
        kept->last_id = walk(*chunk, is_tie, num_kept_ties - ties_before - 1, scratch);
    }
}

// Moves the slot on by the token. One thread of the row calls this.
DEVICE void choose(const SampleArgs& args, const Chunk& chunk, int token, float logprob) {
    int position = args.positions[chunk.slot] + 1;
    if (args.admissions) {
        Admission admission = args.admissions[chunk.entry];
        position = admission.position;
        args.sample_idxs[chunk.slot] = admission.sample_idx;
        args.response_idxs[chunk.slot] = admission.response_idx;
    }
    args.tokens[chunk.slot] = token;
    args.positions[chunk.slot] = position;
    args.num_generated[chunk.slot] = chunk.generated + 1;
    if (args.seen) atomicOr(args.seen + (i64)chunk.slot * ((args.vocab_size + 31) / 32) + token / 32, 1u << (token % 32));
    Sampled sampled = {token, logprob, CHOSEN, chunk.generated + 1};
    args.out[chunk.entry] = sampled;
}

DEVICE void refuse(const SampleArgs& args, const Chunk& chunk, Status status) {
    if (chunk.idx != 0 || threadIdx.x != 0) return;
    Sampled sampled = {-1, QUIET_NAN, status, chunk.generated};
    args.out[chunk.entry] = sampled;
}

// Log-softmax of the raw logits. `max` and `sum`: of the whole raw row.
DEVICE float log_softmax(const SampleArgs& args, const Chunk& chunk, int token, float max, u64 sum) {
    float logit = args.logits[chunk.row * args.logits_stride + token];
    double total = __dmul_rn(__ull2double_rn(sum), 1.0 / 17179869184.0);
    return (float)((double)__fsub_rn(logit, max) - log(total));
}

// False when the entry is nothing to this launch.
DEVICE bool find_chunk(const SampleArgs& args, Chunk* chunk) {
    int task = blockIdx.x;
    if (args.ticket) {
        __shared__ u32 ticket;
        if (threadIdx.x == 0) {
            ticket = atomicAdd(args.ticket, 1);
            if (ticket == gridDim.x - 1) *args.ticket = 0;
        }
        __syncthreads();
        task = ticket;
    }
    chunk->entry = task / args.num_chunks;
    chunk->idx = task % args.num_chunks;
    chunk->slot = chunk->entry;
    chunk->row = chunk->entry;
    chunk->generated = 0;
    chunk->arrivals = args.arrivals + chunk->entry;
    chunk->num_waited_for = 0;
    if (args.admissions) {
        chunk->slot = args.admissions[chunk->entry].slot;
        chunk->row = args.admissions[chunk->entry].logits_row;
        return chunk->slot >= 0 && chunk->slot < args.num_slots && chunk->row >= 0 && chunk->row < args.num_logits_rows;
    }
    chunk->generated = args.num_generated[chunk->slot];
    return args.positions[chunk->slot] >= 0;
}

// The last part of every way to a token: sums over the row, the draw, the log-probability.
template <bool FILTERS>
DEVICE void draw(
    const SampleArgs& args, Chunk* chunk, const float (&values)[SAMPLE_VALUES], const ChunkStats& row, const Kept& kept, Scratch* scratch) {
    float max = row.max;
    int token = row.id;
    auto weight = [&](int i) -> u64 {
        bool is_kept = !FILTERS || keeps(kept, key_of(values[i]), id_of(*chunk, i));
        return is_kept ? weight_of(values[i], max) : 0;
    };
    i64 own_chunk = (i64)chunk->entry * args.num_chunks + chunk->idx;
    u64 own = 0;
    if (!args.use_greedy) {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) own += weight(i);
        own = block_sum(own, scratch);
        if (threadIdx.x == 0) args.sums[own_chunk] = own;
    }
    if (args.compute_logprob) {
        const float* raw = args.logits + chunk->row * args.logits_stride;
        u64 raw_sum = 0;
#pragma unroll 4
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            int id = id_of(*chunk, i);
            if (id < args.vocab_size) raw_sum += weight_of(raw[id], row.raw_max);
        }
        raw_sum = block_sum(raw_sum, scratch);
        if (threadIdx.x == 0) args.raw_sums[own_chunk] = raw_sum;
    }
    wait_for_row(args, chunk);
    bool is_mine = chunk->idx == 0;
    if (!args.use_greedy) {
        u64 before, total;
        row_prefix(args, *chunk, args.sums, &before, &total);
        u64 sample_idx = args.admissions ? args.admissions[chunk->entry].sample_idx : args.sample_idxs[chunk->slot];
        u32 response_idx = args.admissions ? args.admissions[chunk->entry].response_idx : args.response_idxs[chunk->slot];
        u64 target = target_of(uniform(args.seed, sample_idx, response_idx, chunk->generated), total);
        is_mine = before <= target && target < before + own;
        if (is_mine) token = walk(*chunk, weight, target - before, scratch);
    }
    if (!is_mine) return;
    float logprob = QUIET_NAN;
    if (args.compute_logprob) {
        u64 before, total;
        row_prefix(args, *chunk, args.raw_sums, &before, &total);
        logprob = log_softmax(args, *chunk, token, row.raw_max, total);
    }
    // Everybody has read the slot's state before the first wait of the row.
    if (threadIdx.x == 0) choose(args, *chunk, token, logprob);
}

// Greedy: the last block to get here knows the row.
DEVICE void finish_greedy(const SampleArgs& args, Chunk* chunk) {
    if (!leave_row(args, *chunk)) return;
    ChunkStats row = row_stats(args, *chunk);
    Status status = status_of(row.max, row.has_nan);
    chunk->idx = 0;
    if (status != CHOSEN) {
        refuse(args, *chunk, status);
    } else if (threadIdx.x == 0) {
        choose(args, *chunk, row.id, QUIET_NAN);
    }
}

// Grid: entries times chunks. FILTERS: with top_k and top_p.
template <bool FILTERS, class AnyScratch>
DEVICE void sample_chunk(const SampleArgs& args, AnyScratch* scratch) {
    Chunk chunk;
    if (!find_chunk(args, &chunk)) {
        refuse(args, chunk, SKIPPED);
        return;
    }
    float values[SAMPLE_VALUES];
    read_logits(args, chunk, values);
    float raw_max = NEG_INF;
    u32 has_nan = 0;
    if (args.compute_logprob) {
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            raw_max = fmaxf(raw_max, values[i]);
            has_nan |= values[i] != values[i];
        }
    }
    process(args, chunk, values);
    ChunkStats stats = chunk_stats(args, chunk, values, raw_max, has_nan, scratch);
    if (threadIdx.x == 0) args.stats[(i64)chunk.entry * args.num_chunks + chunk.idx] = stats;
    if (args.use_greedy && !args.compute_logprob) {
        finish_greedy(args, &chunk);
        return;
    }
    if constexpr (FILTERS) clear_histogram(args, chunk, 1);
    wait_for_row(args, &chunk);
    ChunkStats row = row_stats(args, chunk);
    float max = row.max;
    Status status = status_of(max, row.has_nan);
    if (status == CHOSEN && args.compute_logprob) status = status_of(row.raw_max, 0);
    if (status != CHOSEN) {
        refuse(args, chunk, status);
        leave_row(args, chunk);
        return;
    }
    Kept kept = {0, 0, 0x7fffffff};
    if constexpr (FILTERS) {
        int round = 1;
        if (args.top_k > 0) kept.least_key = select(args, &chunk, values, max, kept, TOKENS, &round, scratch).key;
        if (args.top_p > 0.0f) apply_top_p(args, &chunk, values, max, &kept, &round, scratch);
    }
    draw<FILTERS>(args, &chunk, values, row, kept, scratch);
    leave_row(args, chunk);
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, SAMPLE_BLOCKS_PER_SM) sample(SampleArgs args) {
    __shared__ Scratch scratch;
    wait_for_previous_kernel();
    let_next_kernel_start();
    sample_chunk<false>(args, &scratch);
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1) sample_filtered(SampleArgs args) {
    __shared__ FilterScratch scratch;
    wait_for_previous_kernel();
    let_next_kernel_start();
    sample_chunk<true>(args, &scratch);
}
