"""Makes chat_templates.json: what transformers makes of conversations with the templates in chat_templates/.

Needs: pip install transformers==4.46.3 jinja2. Run: python make_chat_templates.py FIXTURES
The templates are those that the model families carry, without the last line break of the file; `namespace` is made up
to use what else templates use. A conversation that a template refuses has an `error`.
"""

import argparse
import json
import pathlib

import jinja2
import transformers

HERE = pathlib.Path(__file__).parent
USER, ANSWER = {"role": "user", "content": " What is 1 < 2 & \"so\"?\n"}, {"role": "assistant", "content": "Yes. "}
SYSTEM = {"role": "system", "content": "Be kind, été 日本 😀."}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2.5, "c": [None, True]}}}]}
RESULT = {"role": "tool", "content": "3.5"}
TOOLS = [{"type": "function", "function": {
    "name": "add", "description": "Adds é", "parameters": {"type": "object", "properties": {}, "required": []}}}]
CONVERSATIONS = [
    {"messages": [USER]},
    {"messages": [SYSTEM, USER]},
    {"messages": [USER, ANSWER, {**USER, "content": "A quick\tone?"}]},
    {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER, USER]},
    {"messages": [ANSWER, USER]},
    {"messages": [USER, USER]},
    {"messages": [{"role": "user", "content": "  spaces\u00a0 and\n\nlines  \n", "name": "Ann"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}]}]},
    {"messages": [USER], "tools": TOOLS},
    {"messages": [SYSTEM, USER, CALL, RESULT], "tools": TOOLS},
    {"messages": [{"role": "user", "content": ""}]},
]


def render(tokenizer, conversation):
    try:
        text = tokenizer.apply_chat_template(
            conversation["messages"], tools=conversation.get("tools"), tokenize=False, add_generation_prompt=True)
        return {"text": text}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("fixtures", type=pathlib.Path)
    fixtures, rows = args.parse_args().fixtures, []
    for path in sorted((HERE / "chat_templates").iterdir()):
        tokenizer = transformers.GPT2Tokenizer(
            str(fixtures / "gpt2_bpe/vocab.json"), str(fixtures / "gpt2_bpe/merges.txt"), bos_token="<s>", eos_token="</s>")
        tokenizer.chat_template = path.read_text().removesuffix("\n")
        for conversation in CONVERSATIONS:
            # Other templates print a list as Python does, which no model was trained on.
            if "is string" not in tokenizer.chat_template and isinstance(conversation["messages"][0]["content"], list):
                continue
            rows.append({"template": path.stem, **conversation, **render(tokenizer, conversation)})
    (HERE / "chat_templates.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n")


main()
