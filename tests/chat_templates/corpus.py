"""Finds the chat templates in unpacked packages: template files, strings in Python sources, and tokenizer settings.

What counts as one is told by its text: it has a statement, an expression and the messages. The same text in two places
counts once, under the first path. The lists of packages are pinned with hashes, so that the same templates are found
every time.
"""

import ast
import json

TEMPLATE_FILES = (".jinja", ".jinja2", ".j2")


def is_template(text):
    return all(mark in text for mark in ("{%", "%}", "{{", "messages"))


def joined(node):
    """The text of a literal, or of a sum of literals, as sources write long templates."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = joined(node.left), joined(node.right)
        if left is not None and right is not None:
            return left + right
    return None


def in_python(source):
    """Templates in the order of their lines; of a sum of literals only the whole one."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    pending = [tree]
    while pending:
        node = pending.pop()
        text = joined(node)
        if text is not None:
            if is_template(text):
                yield text
            continue
        pending.extend(reversed(list(ast.iter_child_nodes(node))))


def in_json(value):
    """Templates in a settings file, each as a mapping from names; named ones stay together."""
    if isinstance(value, dict):
        named = value.get("chat_template")
        if isinstance(named, list) and all(isinstance(item, dict) and "template" in item for item in named):
            yield {item["name"]: item["template"] for item in named}
        for key, item in value.items():
            if key != "chat_template" or not isinstance(item, list):
                yield from in_json(item)
    elif isinstance(value, list):
        for item in value:
            yield from in_json(item)
    elif isinstance(value, str) and is_template(value):
        yield {"default": value}


def in_file(path):
    if path.suffix in TEMPLATE_FILES:
        text = path.read_bytes().decode("utf-8", errors="strict")
        if is_template(text):
            yield {"default": text}
    elif path.suffix == ".py":
        source = path.read_bytes()
        if b"{%" in source:
            yield from ({"default": text} for text in in_python(source))
    elif path.suffix == ".json":
        source = path.read_bytes()
        if b"{%" in source:
            yield from in_json(json.loads(source))


def find_templates(folder, named_sets):
    """Pairs of an id and a mapping from names to templates.

    `named_sets` joins files into one set of named templates: packages that ship a model's templates file by file.
    """
    found = {}
    seen = set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for number, templates in enumerate(in_file(path), start=1):
            key = tuple(sorted(templates.items()))
            if key in seen:
                continue
            seen.add(key)
            name = path.relative_to(folder).as_posix()
            found[name if number == 1 else f"{name}#{number}"] = templates
    for name, parts in named_sets.items():
        found[name] = {part: (folder / path).read_text(encoding="utf-8") for part, path in parts.items()}
    return found
