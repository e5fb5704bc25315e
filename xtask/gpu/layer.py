"""Where the time of a layer goes when a step has few rows, on one GPU of compute capability 9.0.

    python3 xtask/gpu/layer.py [llama2-7b|llama3-8b|gpt-2b [ROWS CONTEXT]]

First the GEMMs of a layer, each over the weights of all layers one after the other, beside cuBLAS's. Then a chain of layers as a
step enqueues them (norms, GEMMs, decode attention), replayed as a graph: its time, and by the GPU's clock when the blocks of each
kernel start, have what they waited for, and end. The marks are put into the sources in crates/cuda-kernels/kernels; weights are random.
"""

import ctypes
import struct
import sys

import torch

from driver import aligned, captured, cuda, check, edited, kernel, launch, micros, nvrtc, source

HEAD_DIM, BLOCK_TOKENS, SPLIT_KEYS, NUM_WARPS = 128, 32, 512, 4
# Layers, hidden size, groups of heads, width of the MLP, elements of a head that are rotated; SiLU gated.
SHAPES = {"llama2-7b": (32, 4096, 32, 11008, 128), "llama3-8b": (32, 4096, 8, 14336, 128), "gpt-2b": (24, 2048, 16, 5440, 64)}
SILU, NO_ACTIVATION = 3, -1
# As in crates/cuda-kernels/src: Tiling, GemmShape and the launchers.
BLOCKS_PER_SM, QUERY_TILE = 2, 8
PENDING_BYTES, LINE_BYTES, MAX_STAGES = 48 * 1024, 128, 16

STARTED, ASKED, WAITED, FIRST, LAST, ENDED = range(6)
MOMENTS = {STARTED: "started", ASKED: "ring asked for", WAITED: "waited", FIRST: "has first inputs", LAST: "has computed", ENDED: "ended"}
MAX_BLOCKS = 512
MARK = """
DEVICE void mark(u64* trace, int moment, int thread = 0) {
    if (!trace || threadIdx.x != thread) return;
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now) :: "memory");
    trace[blockIdx.x * 8 + moment] = now;
}
"""


def after(line, moment):
    return line, f"{line}\n    mark(args.trace, {moment});\n"


def before(line, moment, when="true", thread=0):
    return line, f"    if ({when}) mark(args.trace, {moment}, {thread});\n{line}"


GEMM = edited(
    source("gemm.cu"),
    ("// `out`\n};\n", "\n    u64* trace;\n};\n" + MARK),
    after("    let_next_start();", STARTED),
    after("        return;\n    }\n    wait_for_previous();", WAITED),
    before('        asm volatile("wgmma.fence.sync.aligned;"', FIRST, "step == 0"),
    before("    store_all(args,", LAST),
    after(" - start)), sums);", ENDED),
)
RING = edited(source("ring.cuh"), before("        u32 full = ring.weights_full(place.stage);", ASKED, "step == min(ring.num_stages, ring.num_steps) - 1", 128))
NORM = edited(
    source("norm.cuh"),
    ("    float eps;\n};\n", "    float eps;\n    u64* trace;\n};\n" + MARK),
    after("    let_next_start();", STARTED),
    after("    wait_for_previous();", WAITED),
    after("        store(args.out + start + i, result);\n    }", ENDED),
)
ITEM = edited(source("item.cuh"), ("// scale of the scores times log2(e)\n};\n", "\n    u64* trace;\n};\n" + MARK))
ATTENTION = edited(
    source("attention.cu"),
    after("    let_next_start();", STARTED),
    after("prefetch_item(args, item);\n    wait_for_previous();", WAITED),
    before("        attend_warp(args, item", FIRST),
    before("        join_warps(args, item, merge);", LAST),
    after("        if (!item.is_whole) count_split(args, item);", ENDED),
)


def gemm_shape(num_sms, rows, num_out, num_in, halves):
    """GemmShape::of, where one block a multiprocessor can take all outputs."""
    share = max(-(-(-(-num_out // num_sms)) // 8) * 8, 32 // halves)
    weight_rows, x_rows = share * halves, -(-rows // 8) * 8
    tiles = 2 if weight_rows <= 96 else 1
    tile_bytes = (x_rows + weight_rows) * LINE_BYTES
    slack = max(0, 64 * LINE_BYTES - tile_bytes)
    ring_bytes = (200 if rows <= 32 else 165) * 1024 - MAX_STAGES * 24 - 1024 - slack
    stages = min(ring_bytes // (tiles * tile_bytes), MAX_STAGES, max(-(-num_in // (64 * tiles)), 2))
    pending = min(max(-(-PENDING_BYTES // (tiles * weight_rows * LINE_BYTES)), 2), stages)
    return weight_rows, x_rows, tiles, -(-num_out // share), stages, pending, 1024 + slack + stages * tiles * tile_bytes


def tensor_map(matrix, tile_rows):
    """As in tensor_map.rs."""
    kept, address = aligned(128)
    numbers = lambda kind, *values: (kind * len(values))(*values)
    rows, columns = matrix.shape
    sizes, pitch = numbers(ctypes.c_uint64, columns, rows), numbers(ctypes.c_uint64, 2 * columns)
    tile, strides = numbers(ctypes.c_uint32, 64, tile_rows), numbers(ctypes.c_uint32, 1, 1)
    where = ctypes.c_void_p(matrix.data_ptr())
    check(cuda.cuTensorMapEncodeTiled(ctypes.c_void_p(address), 9, 2, where, sizes, pitch, tile, strides, 0, 3, 3, 0), "cuTensorMapEncodeTiled")
    return ctypes.string_at(address, 128)


class Layers:
    """The kernels of a shape, its layers and one step's tensors."""

    def __init__(self, name, rows, context):
        self.num_layers, self.hidden, self.groups, self.ffn, self.rotary_dim = SHAPES[name]
        self.rows, self.context, self.heads = rows, context, self.hidden // HEAD_DIM
        self.queries = self.heads // self.groups
        self.compiler, self.loaded = nvrtc(), {}
        self.num_sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.trace = None
        torch.manual_seed(0)
        half = dict(device="cuda", dtype=torch.bfloat16)
        ints = lambda *values: torch.tensor(values, device="cuda", dtype=torch.int32)
        normal = lambda *shape: torch.empty(*shape, **half).normal_(0, 0.02)
        table_width = -(-context // BLOCK_TOKENS)
        self.num_blocks = rows * table_width
        h, cache = self.hidden, (self.num_blocks * self.groups * BLOCK_TOKENS, HEAD_DIM)
        qkv = (self.heads + 2 * self.groups) * HEAD_DIM
        gain = lambda: torch.rand(h, device="cuda") + 0.5
        weights = lambda: (normal(qkv, h), normal(h, h), normal(2 * self.ffn, h), normal(h, self.ffn))
        self.layers = [(*weights(), gain(), gain(), normal(*cache), normal(*cache)) for _ in range(self.num_layers)]
        self.first = torch.randn(rows, h, **half)
        self.residual, self.x, self.attended = self.first.clone(), torch.empty(rows, h, **half), torch.zeros(rows, h, **half)
        self.qkv, self.activated = torch.empty(rows, qkv, **half), torch.empty(rows, self.ffn, **half)
        blocks = torch.randperm(self.num_blocks, device="cuda").int().view(rows, table_width)
        slots = [int(blocks[row, (context - 1) // BLOCK_TOKENS]) * BLOCK_TOKENS + (context - 1) % BLOCK_TOKENS for row in range(rows)]
        items = [number for row in range(rows) for number in (row, 1, 1, 0, 0, 1, context, slots[row])]
        parts = torch.zeros(rows * self.heads * (HEAD_DIM + 2), device="cuda")
        angles = torch.rand(context, self.rotary_dim // 2, device="cuda")
        self.plan = [blocks, ints(*slots), ints(*[context] * rows), ints(*items), ints(rows), ints(*[0] * rows * self.heads), ints(0, 0), parts, parts, angles.cos(), angles.sin()]

    def get(self, text, name, defines, headers, shared=0):
        key = (name, *sorted(defines.items()))
        if key not in self.loaded:
            defines = dict(ELEM=1, HEAD_DIM=HEAD_DIM, QUERIES_PER_GROUP=self.queries, **defines)
            self.loaded[key] = kernel(self.compiler, text, name, defines, headers, shared)
        return self.loaded[key]

    def mark(self):
        """Where the next kernel notes its moments: nowhere unless there is a trace."""
        if self.trace is None:
            return struct.pack("Q", 0)
        self.num_traced += 1
        return struct.pack("Q", self.trace[self.num_traced - 1].data_ptr())

    def norm(self, gain):
        function = self.get(source("pointwise.cu"), "rms_norm", {}, {"norm.cuh": NORM})
        args = struct.pack("4Qif", self.residual.data_ptr(), gain.data_ptr(), 0, self.x.data_ptr(), self.hidden, 1e-5) + self.mark()
        launch(function, self.rows, min(-(-self.hidden // 256) * 32, 1024), 0, [args], overlaps=True)

    def gemm(self, x, weight, out, is_gated=False, is_added=False):
        halves = 2 if is_gated else 1
        num_out, num_in = weight.shape[0] // halves, weight.shape[1]
        weight_rows, x_rows, tiles, blocks, stages, pending, shared = gemm_shape(self.num_sms, self.rows, num_out, num_in, halves)
        n = weight_rows // 2
        registers = ", ".join(f"%{i}" for i in range(n))
        instruction = f"wgmma.mma_async.sync.aligned.m64n{weight_rows}k16.f32.bf16.bf16 {{{registers}}}, %{n}, %{n + 1}, 1, 1, 1, 0, 0;"
        sums = ", ".join(f'"+f"(sums[{i}])' for i in range(n))
        defines = dict(WEIGHT_ROWS=weight_rows, TILES=tiles, MULTIPLY=f'"{instruction}"', MULTIPLY_SUMS=sums)
        defines |= dict(ACTIVATION=SILU if is_gated else NO_ACTIVATION, IS_GATED=int(is_gated))
        function = self.get(GEMM, "gemm", defines, {"ring.cuh": RING}, 200 * 1024)
        residual = out.data_ptr() if is_added else 0
        # GemmArgs of gemm.cu.
        args = struct.pack("3Q5iIi4x", 0, residual, out.data_ptr(), self.rows, num_out, num_in, stages, pending, x_rows * LINE_BYTES, 0) + self.mark()
        launch(function, blocks, 192, shared, [tensor_map(x, x_rows), tensor_map(weight, weight_rows // halves), args], overlaps=True)

    def attention(self, keys, values):
        defines = dict(QUERY_COLUMNS=1, SPLIT_KEYS=SPLIT_KEYS, NUM_WARPS=NUM_WARPS, BLOCKS_PER_SM=BLOCKS_PER_SM)
        shared = QUERY_TILE * HEAD_DIM * 2 + NUM_WARPS * QUERY_TILE * (HEAD_DIM * 4 + 8) + QUERY_TILE * HEAD_DIM * 6
        function = self.get(ATTENTION, "decode_attention_qkv", defines, {"item.cuh": ITEM}, shared)
        tensors = [self.qkv, keys, values, self.attended, *self.plan]
        # AttentionArgs of item.cuh.
        args = struct.pack("13Q2Q2i", *[tensor.data_ptr() for tensor in tensors], self.rotary_dim, self.context)
        args += struct.pack("5if", self.groups, self.plan[0].shape[1], self.num_blocks, 1, self.rows, HEAD_DIM**-0.5 * 1.4427) + self.mark()
        launch(function, self.num_sms * BLOCKS_PER_SM, 32 * NUM_WARPS, shared, [args], overlaps=True)

    def step(self):
        self.residual.copy_(self.first)
        for qkv, proj, fc1, fc2, gain, next_gain, keys, values in self.layers:
            self.norm(gain)
            self.gemm(self.x, qkv, self.qkv)
            self.attention(keys, values)
            self.gemm(self.attended, proj, self.residual, is_added=True)
            self.norm(next_gain)
            self.gemm(self.x, fc1, self.activated, is_gated=True)
            self.gemm(self.activated, fc2, self.residual, is_added=True)


def tell_gemms(layers, stream):
    for i, name in enumerate(("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")):
        x, out = [(layers.x, layers.qkv), (layers.attended, layers.x), (layers.x, layers.activated), (layers.activated, layers.x)][i]

        def own():
            for layer in layers.layers:
                layers.gemm(x, layer[i], out, is_gated=i == 2)

        filled = torch.randn(max(layers.rows, 32), x.shape[1], device="cuda", dtype=torch.bfloat16)

        def cublas():
            for layer in layers.layers:
                torch.nn.functional.linear(filled, layer[i])

        own_time, cublas_time = (micros(stream, enqueue) / layers.num_layers for enqueue in (own, cublas))
        print(f"{name}: {own_time:.1f} us, cuBLAS with {filled.shape[0]} rows {cublas_time:.1f} us", flush=True)


def tell_moments(layers, stream):
    layers.trace = torch.zeros(7 * layers.num_layers, MAX_BLOCKS, 8, device="cuda", dtype=torch.int64)

    def traced():
        layers.num_traced = 0
        layers.step()

    graph = captured(stream, traced)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    trace = layers.trace.view(layers.num_layers, 7, MAX_BLOCKS, 8).cpu()
    names = ("input_norm", "linear_qkv", "attention", "linear_proj", "pre_mlp_norm", "linear_fc1", "linear_fc2")
    print("us after the input norm of a layer may read, over all layers but the outermost: first, middle and last block")
    for i, name in enumerate(names):
        for moment, what in MOMENTS.items():
            spans = []
            for layer in range(2, layers.num_layers - 2):
                zero = trace[layer, 0, 0, WAITED]
                live = trace[layer, i][trace[layer, i, :, ENDED] > 0][:, moment]
                # Whole numbers until here: the clock's nanoseconds do not fit a double.
                live = live[live > 0] - zero
                if len(live):
                    spans.append(torch.stack([live.min(), live.median(), live.max()]).double() / 1000)
            if spans:
                print(f"{name:12} {what:16}", *(f"{time:7.2f}" for time in torch.stack(spans).mean(0)))


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "llama2-7b"
    rows, context = (int(arg) for arg in sys.argv[2:4]) if len(sys.argv) > 3 else (1, 192)
    if name not in SHAPES or not 1 <= rows <= 64 or not 1 <= context <= SPLIT_KEYS:
        sys.exit(f"wanted one of {', '.join(SHAPES)}, 1 to 64 rows and a context of 1 to {SPLIT_KEYS}")
    torch.cuda.init()
    layers, stream = Layers(name, rows, context), torch.cuda.Stream()
    tell_gemms(layers, stream)
    weight_bytes = sum(weight.numel() * 2 for layer in layers.layers for weight in layer[:4])
    time = micros(stream, layers.step)
    print(f"{layers.num_layers} layers, rows {rows}, context {context}: {time:.0f} us, {weight_bytes / time / 1e6:.2f} TB/s of weights", flush=True)
    tell_moments(layers, stream)


if __name__ == "__main__":
    main()
