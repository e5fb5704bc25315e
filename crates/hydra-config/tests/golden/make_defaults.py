"""Writes `defaults.jsonl` beside this file: config files with defaults lists, and what hydra-core 1.3.2 composes.

    python make_defaults.py

A row is [files, overrides, answer]; the config is `main`.
"""
import json
import random
import tempfile
import warnings
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from make_golden import answer

warnings.simplefilter("ignore")
HERE = Path(__file__).parent
R = random.Random(7)
GROUPS = {
    "db/mysql": "driver: mysql\nport: 3306\n",
    "db/postgres": "driver: postgres\nport: 5432\nextra: 1\n",
    "db/engine/inno": "engine: inno\n",
    "db/engine/rocks": "# @package _global_\nengine: rocks\n",
    "db/full": "defaults:\n- engine: inno\n- _self_\ndriver: full\n",
    "db/base_user": "defaults:\n- mysql\n- _self_\nport: 1\n",
    "web/nginx": "# @package server.web\nname: nginx\ndb:\n  port: 9\n",
    "web/apache": "defaults:\n- /db@inner: postgres\nname: apache\n",
    "web/chooser": "defaults:\n- override /db: postgres\nname: chooser\n",
    "base": "a: 1\nb: {c: 2}\nport: 0\n",
    "pkg": "# @package deep.er\nx: 1\n",
    "db/${x}": "never: 1\n",
    "tp_overlap/h100": "tp: 4\n",
}
CASES = [
    ("a: 1\n", []),
    ("defaults:\n- db: mysql\na: 1\n", []),
    ("defaults:\n- db: mysql\n- _self_\ndb: {port: 1}\n", []),
    ("defaults:\n- _self_\n- db: mysql\ndb: {port: 1}\n", []),
    ("defaults:\n- db: mysql\ndb: {port: 1}\n", []),
    ("defaults:\n- db: mysql\n", ["db=postgres"]),
    ("defaults:\n- db: mysql\n", ["db=[mysql,postgres]"]),
    ("defaults:\n- db: mysql\n", ["db=null"]),
    ("defaults:\n- db: mysql\n", ["~db"]),
    ("defaults:\n- db: mysql\n", ["~db=mysql"]),
    ("defaults:\n- db: mysql\n", ["~db=postgres"]),
    ("defaults:\n- db: mysql\n", ["+db=postgres"]),
    ("defaults:\n- db: mysql\n", ["+db@other=postgres"]),
    ("defaults:\n- db: mysql\n", ["db@other=postgres"]),
    ("defaults:\n- db: mysql\n", ["++db=postgres"]),
    ("defaults:\n- db: mysql\n", ["db=oracle"]),
    ("defaults:\n- db: mysql\n", ["db={port:5}"]),
    ("defaults:\n- db: mysql\n", ["db.port=5"]),
    ("defaults:\n- db: mysql\n", ["db=postgres", "db.extra=7"]),
    ("a: 1\n", ["+db=mysql"]),
    ("a: 1\n", ["db=mysql"]),
    ("a: 1\n", ["~db"]),
    ("defaults:\n- db@one: mysql\n- db@two: postgres\n", []),
    ("defaults:\n- db@one: mysql\n- db@two: postgres\n", ["db@one=postgres"]),
    ("defaults:\n- db@one: mysql\n- db@two: postgres\n", ["db=postgres"]),
    ("defaults:\n- db@one: mysql\n- db@one: postgres\n", []),
    ("defaults:\n- db: mysql\n- db: postgres\n", []),
    ("defaults:\n- db@_global_: mysql\na: 1\n", []),
    ("defaults:\n- db@_here_: mysql\na: 1\n", []),
    ("defaults:\n- db@_group_.x: mysql\n", []),
    ("defaults:\n- db@a.b: mysql\n", []),
    ("defaults:\n- db@_global_: mysql\n", ["db@_global_=postgres"]),
    ("defaults:\n- optional tp_overlap@model.ub_tp_comm_overlap_cfg:\nmodel: {a: 1}\n", []),
    ("defaults:\n- optional tp_overlap@model.ub_tp_comm_overlap_cfg:\nmodel: {a: 1}\n", ["tp_overlap@model.ub_tp_comm_overlap_cfg=h100"]),
    ("defaults:\n- optional tp_overlap@model.ub_tp_comm_overlap_cfg:\nmodel: {a: 1}\n", ["tp_overlap@model.ub_tp_comm_overlap_cfg=nope"]),
    ("defaults:\n- optional tp_overlap@model.ub_tp_comm_overlap_cfg: h100\nmodel: {a: 1}\n", []),
    ("defaults:\n- optional db: nope\na: 1\n", []),
    ("defaults:\n- optional nope: x\na: 1\n", []),
    ("defaults:\n- nope: x\na: 1\n", []),
    ("defaults:\n- nope\na: 1\n", []),
    ("defaults:\n- base\na: 5\n", []),
    ("defaults:\n- base\n- _self_\na: 5\n", []),
    ("defaults:\n- _self_\n- base\na: 5\n", []),
    ("defaults:\n- base@sub\na: 5\n", []),
    ("defaults:\n- db/mysql\na: 5\n", []),
    ("defaults:\n- /db/mysql\na: 5\n", []),
    ("defaults:\n- db/mysql@x.y\na: 5\n", []),
    ("defaults:\n- pkg\na: 5\n", []),
    ("defaults:\n- pkg@other\na: 5\n", []),
    ("defaults:\n- db: full\n", []),
    ("defaults:\n- db: full\n", ["db/engine=rocks"]),
    ("defaults:\n- db: full\n- override db/engine: rocks\n", []),
    ("defaults:\n- override db/engine: rocks\n- db: full\n", []),
    ("defaults:\n- db@x: full\n", []),
    ("defaults:\n- db@x: full\n", ["db/engine@x.engine=rocks"]),
    ("defaults:\n- db@x: full\n", ["db/engine=rocks"]),
    ("defaults:\n- db: base_user\n", []),
    ("defaults:\n- db/engine: rocks\na: 1\n", []),
    ("defaults:\n- web: nginx\na: 1\n", []),
    ("defaults:\n- web: apache\na: 1\n", []),
    ("defaults:\n- web: apache\na: 1\n", ["db@inner=mysql"]),
    ("defaults:\n- web: apache\na: 1\n", ["db@web.inner=mysql"]),
    ("defaults:\n- db: mysql\n- web: chooser\n", []),
    ("defaults:\n- web: chooser\n- db: mysql\n", []),
    ("defaults:\n- web: chooser\n- db: mysql\n", ["db=full"]),
    ("defaults:\n- web: chooser\n", []),
    ("defaults:\n- db: [mysql, postgres]\n", []),
    ("defaults:\n- db: [mysql, nope]\n", []),
    ("defaults:\n- optional db: [mysql, nope]\n", []),
    ("defaults:\n- db: []\n", []),
    ("defaults:\n- db: ???\n", []),
    ("defaults:\n- db: ???\n", ["db=mysql"]),
    ("defaults:\n- db: mysql\n- web: ${db}\n", []),
    ("defaults:\n- db/engine: inno\n- db: ${db/engine}\n", []),
    ("defaults:\n- web: nginx\n- db: ${defaults.0.web}\n", []),
    ("defaults:\n- db@z: mysql\n- db: ${db@z}\n", []),
    ("defaults:\n- db: ${web}\n- web: nginx\n", []),
    ("defaults:\n- base\n- db: mysql\n- _self_\n- web: nginx\nport: 3\n", ["port=4", "+new=1"]),
    ("defaults:\n- _self_\n- _self_\n", []),
    ("defaults: {db: mysql}\n", []),
    ("defaults: null\na: 1\n", []),
    ("defaults: []\na: 1\n", []),
    ("defaults:\n- 1\n", []),
    ("defaults:\n- db: 1\n", []),
    ("defaults:\n- {db: mysql, web: nginx}\n", []),
    ("defaults:\n- {}\n", []),
    ("defaults:\n- db: mysql.yaml\n", []),
    ("# @package top\ndefaults:\n- db: mysql\na: 1\n", []),
    ("# @package _global_\ndefaults:\n- db: mysql\na: 1\n", []),
    ("# comment\n#@package top\na: 1\n", []),
    ("a: 1\n# @package top\n", []),
    ("defaults:\n- db: mysql\na: ${db.port}\n", []),
    ("defaults:\n- db: mysql\ndb: 5\n", []),
    ("defaults:\n- db: mysql\n- _self_\ndb: [1]\n", []),
    ("defaults:\n- override hydra/job_logging: stdout\na: 1\n", []),
    ("defaults:\n- db: mysql\n- override hydra/job_logging: stdout\na: 1\n", ["hydra/job_logging=none"]),
    ("a: 1\n", ["hydra/job_logging=stdout", "hydra.output_subdir=null", "hydra.run.dir=."]),
    ("a: 1\n", ["a@b=1"]),
    ("a: 1\n", ["x/y=1"]),
    ("sub:\n  defaults: [1]\na: 1\n", []),
]


def random_case():
    entries = []
    for _ in range(R.randrange(1, 4)):
        group = R.choice(["db", "web", "db/engine", "/db", "optional db", "nope", "optional tp_overlap"])
        package = R.choice(["", "", "", "@p", "@_global_", "@p.q", "@_here_"])
        option = R.choice(["mysql", "postgres", "full", "inno", "rocks", "nginx", "apache", "null", "h100", "base_user"])
        entries.append(R.choice([f"{group}{package}: {option}", f"{group}{package}: {option}", R.choice(["base", "pkg", "_self_", "base@p", "db/mysql"])]))
    text = "defaults:\n" + "".join(f"- {entry}\n" for entry in entries) + R.choice(["a: 7\n", "port: 7\n", "db: {port: 7}\n", "p: {port: 7}\n", ""])
    overrides = R.sample(["db=postgres", "db@p=mysql", "~db", "web=nginx", "db/engine=rocks", "+db=full", "+web@w=apache", "port=1", "+port=1", "db.port=2", "db@_global_=postgres"], k=R.choice([0, 0, 1, 1, 2]))
    return text, overrides


def run(text, overrides):
    with tempfile.TemporaryDirectory() as folder:
        for path, content in {**GROUPS, "main": text}.items():
            file = Path(folder, f"{path}.yaml")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        with initialize_config_dir(folder, version_base="1.2"):
            return OmegaConf.to_container(compose("main", overrides))


def main():
    cases = dict.fromkeys((text, tuple(overrides)) for text, overrides in CASES)
    num_errors = 0
    rows = []
    for text, overrides in cases:
        rows.append([text, list(overrides), answer(lambda: run(text, list(overrides)))])
    while len(rows) < 400:
        text, overrides = random_case()
        if (text, tuple(overrides)) in cases:
            continue
        cases[(text, tuple(overrides))] = None
        result = answer(lambda: run(text, overrides))
        if "error" in result:
            num_errors += 1
            if num_errors > 100:
                continue
        rows.append([text, overrides, result])
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in [[GROUPS], *rows]]
    (HERE / "defaults.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(len(rows), "rows,", sum("error" in row[-1] for row in rows), "errors")


if __name__ == "__main__":
    main()
