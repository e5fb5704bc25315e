"""Makes quantised.gguf and quantised.safetensors: every supported block type, dequantised by the gguf package.

Needs gguf 0.19, numpy 2, safetensors 0.8. Run in this folder: python make_gguf_golden.py
"""

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

rng = np.random.default_rng(7)
writer = gguf.GGUFWriter("quantised.gguf", "test")
writer.add_array("test.strings", ["a", "\u2581b", ""])
writer.add_float32("test.f32", 1e-5)
writer.add_bool("test.bool", True)
expected = {}
for name in TYPES:
    values = (rng.standard_normal((5, 96)) * 0.3).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    packed = quantize(values, kind)
    writer.add_tensor(name, packed, raw_dtype=kind)
    expected[name] = np.ascontiguousarray(dequantize(packed, kind).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file(expected, "quantised.safetensors")
