"""Makes k_quants.gguf and k_quants.safetensors: random blocks of each K-quant type, dequantised by the gguf package.

Needs gguf 0.19, numpy 2, safetensors 0.8. Run in this folder: python make_k_quants_golden.py. The package cannot
quantise to these types, so every bit of a block is drawn, apart from its f16 factors, which must be finite.
"""

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where a block has its f16 factors.
TYPES = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ROWS, BLOCKS = 3, 2

rng = np.random.default_rng(11)
writer = gguf.GGUFWriter("k_quants.gguf", "test")
expected = {}
for name, factors in TYPES.items():
    kind = gguf.GGMLQuantizationType[name]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    packed = rng.integers(0, 256, (ROWS, BLOCKS, block_bytes), dtype=np.uint8)
    for at in factors:
        values = rng.uniform(0.001, 0.1, (ROWS, BLOCKS, 1)).astype(np.float16)
        packed[:, :, at : at + 2] = values.view(np.uint8)
    packed = packed.reshape(ROWS, BLOCKS * block_bytes)
    writer.add_tensor(name, packed, raw_dtype=kind)
    expected[name] = np.ascontiguousarray(dequantize(packed, kind).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file(expected, "k_quants.safetensors")
