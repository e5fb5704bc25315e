#pragma once
// What becomes of the sums of an FP8 GEMM, and how they leave the multiprocessor.

#define NUM_BLOCKS (GROUP_COLUMNS / 8) // of eight columns

// What a lane's two columns are scaled by and added to. It is read before anything is stored, which might change it for all
// that the compiler knows.
struct Columns {
    float scale[2], bias[2] = {0.0f, 0.0f};

    DEVICE Columns(const GemmArgs& args, int column) {
        load(args.weight_scales + column, scale);
        if (args.bias) load(args.bias + column, bias);
    }
};

// Two sums and what they are added to, rounded; the sums were rounded before.
DEVICE u32 add_pair(u32 sums, u32 old) {
    return pack2(to_float((u16)sums) + to_float((u16)old), to_float((u16)(sums >> 16)) + to_float((u16)(old >> 16)));
}

// Four neighbouring lanes hold a pair each of four blocks of eight columns; afterwards each holds one block.
DEVICE void transpose(u32 (&words)[4]) {
    bool is_odd = threadIdx.x & 1, is_high = threadIdx.x & 2;
    u32 a = __shfl_xor_sync(0xffffffff, is_odd ? words[0] : words[1], 1);
    u32 b = __shfl_xor_sync(0xffffffff, is_odd ? words[2] : words[3], 1);
    words[0] = is_odd ? a : words[0], words[1] = is_odd ? words[1] : a;
    words[2] = is_odd ? b : words[2], words[3] = is_odd ? words[3] : b;
    a = __shfl_xor_sync(0xffffffff, is_high ? words[0] : words[2], 2);
    b = __shfl_xor_sync(0xffffffff, is_high ? words[1] : words[3], 2);
    words[0] = is_high ? a : words[0], words[2] = is_high ? words[2] : a;
    words[1] = is_high ? b : words[1], words[3] = is_high ? words[3] : b;
}

DEVICE void store_pair(const GemmArgs& args, i64 at, u32 word) {
    if (args.residual) word = add_pair(word, *(const u32*)(args.residual + at));
    *(u32*)((T*)args.out + at) = word;
}

DEVICE void store_eight(const GemmArgs& args, i64 at, const u32 (&words)[4]) {
    uint4 out = make_uint4(words[0], words[1], words[2], words[3]);
    if (args.residual) {
        uint4 old = *(const uint4*)(args.residual + at);
        out = make_uint4(add_pair(out.x, old.x), add_pair(out.y, old.y), add_pair(out.z, old.z), add_pair(out.w, old.w));
    }
    *(uint4*)((T*)args.out + at) = out;
}

// The blocks of eight columns from FIRST on, at most four at once, and then those behind them. `column`, `row`: where the
// tile begins, and the first of the two lines of a lane, which are 8 apart.
template <int FIRST>
DEVICE void store_blocks(const GemmArgs& args, int column, int row, const float (&x_scales)[2], const float (&sums)[NUM_SUMS]) {
    const int COUNT = NUM_BLOCKS - FIRST < 4 ? NUM_BLOCKS - FIRST : 4;
    int lane = threadIdx.x % 4;
    float values[2][4][2];
#pragma unroll
    for (int b = 0; b < COUNT; b++) {
        Columns columns(args, min(column + 8 * (FIRST + b) + 2 * lane, args.num_out - 2));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float scaled = sums[4 * (FIRST + b) + i] * x_scales[i / 2] * columns.scale[i % 2];
            // Not fused with the multiplication, whose result is rounded without a bias too.
            values[i / 2][b][i % 2] = __fadd_rn(scaled, columns.bias[i % 2]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int line = row + 8 * half;
        i64 start = (i64)line * args.num_out;
        u32 words[4];
#pragma unroll
        for (int b = 0; b < COUNT; b++) words[b] = pack2(values[half][b][0], values[half][b][1]);
        bool is_eight = COUNT == 4 && !args.is_f32;
        if (is_eight) transpose(words);
        if (line >= args.rows) continue;
        if (is_eight) {
            int at = column + 8 * (FIRST + lane);
            if (at < args.num_out) store_eight(args, start + at, words);
            continue;
        }
#pragma unroll
        for (int b = 0; b < COUNT; b++) {
            int at = column + 8 * (FIRST + b) + 2 * lane;
            if (at >= args.num_out) continue;
            if (args.is_f32) {
                store((float*)args.out + start + at, values[half][b]);
            } else {
                store_pair(args, start + at, words[b]);
            }
        }
    }
    if constexpr (FIRST + 4 < NUM_BLOCKS) store_blocks<FIRST + 4>(args, column, row, x_scales, sums);
}

DEVICE void store_all(const GemmArgs& args, Tile tile, int group, const float (&sums)[NUM_SUMS]) {
    int row = tile.row + group % ROW_GROUPS * 64 + threadIdx.x % GROUP_THREADS / 32 * 16 + threadIdx.x % 32 / 4;
    float x_scales[2];
#pragma unroll
    for (int half = 0; half < 2; half++) x_scales[half] = args.x_scales[min(row + 8 * half, args.rows - 1)];
    store_blocks<0>(args, tile.column + group / ROW_GROUPS * GROUP_COLUMNS, row, x_scales, sums);
}
