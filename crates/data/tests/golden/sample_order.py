"""Writes sample_order.json: what NeMo's OnlineSampleMapping draws, `[num_records, num_samples, positions, samples]`.

    pip install numpy && pip download --no-deps nemo_toolkit==2.0.0 && unzip nemo_toolkit-2.0.0-py3-none-any.whl
    python sample_order.py nemo/collections/nlp/data/language_modeling/text_memmap_dataset.py

The class is taken out of that file, because importing it takes all of NeMo. Of large datasets a few positions are kept.
"""

import ast
import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

source = Path(sys.argv[1]).read_text()
wanted = [node for node in ast.parse(source).body if getattr(node, "name", None) in ("OnlineSampleMapping", "handle_index")]
names = {"np": np, "lru_cache": lru_cache}
exec(compile(ast.Module(body=wanted, type_ignores=[]), sys.argv[1], "exec"), names)

cases = []
for records, samples in [(1, 1), (1, 5), (7, 3), (10, 10), (10, 25), (12, 36), (5, 64), (700, 650), (1000003, 1000003), (2500000, 40), (3, 2000)]:
    mapping = names["OnlineSampleMapping"](records, samples)
    positions = list(range(len(mapping))) if samples < 100 else list(range(0, samples, samples // 40))
    cases.append([records, samples, positions, [int(mapping[position][0]) for position in positions]])
path = Path(__file__).with_suffix(".json")
path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
