"""Writes messages.json: records, and what a chat template sees of them through transformers 5.24.0 and TRL's way of calling it.

    pip install transformers==5.24.0 jinja2
    python3 crates/data/tests/golden/make_messages.py

TRL reads `tools` from the record, parses it when it is a text, and passes `chat_template_kwargs` on as keyword arguments.
"""

import json
from pathlib import Path

from transformers.utils import chat_template_utils as utils

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": None, "b": [None]}}}
TOOL = {"type": "function", "function": {"name": "f", "description": None, "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "x"}


def messages(*all_messages, **more):
    return {"messages": list(all_messages), **more}


RECORDS = [
    messages(USER),
    messages(USER, {"role": "assistant", "content": None}),
    messages({"role": "user", "content": "x", "tool_calls": None, "name": None}),
    messages(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}),
    messages(USER, {"role": "assistant", "content": None, "tool_calls": [{"id": None, "function": None}]}),
    messages({"role": "user", "content": [{"type": "text", "text": "x", "image": None}, {"type": "image", "text": None}]}),
    messages({"role": "user", "content": ""}, {"role": "assistant", "content": "", "tool_calls": []}),
    messages({"role": "user", "content": {"a": None}}),
    messages(USER, {"role": "assistant", "content": "y", "reasoning": "r"}),
    messages(USER, {"role": "assistant", "content": "y", "thinking": "t"}),
    messages(USER, {"role": "assistant", "thinking": "t", "content": "y", "reasoning": "r"}),
    messages(USER, {"role": "assistant", "content": "y", "reasoning_content": "c", "thinking": "t", "reasoning": "r"}),
    messages(USER, {"role": "assistant", "content": "y", "reasoning_content": None, "thinking": None, "reasoning": "r"}),
    messages(USER, {"role": "assistant", "content": "y", "reasoning_content": None, "thinking": None, "reasoning": None}),
    messages(USER, {"role": "assistant", "content": "y", "reasoning_content": ""}),
    messages(USER, {"role": "assistant", "content": "y", "reasoning": [{"text": None}]}),
    messages(USER, {"role": "tool", "content": None, "tool_call_id": None, "name": "f"}),
    messages(USER, tools=None),
    messages(USER, tools=[]),
    messages(USER, tools=[TOOL]),
    messages(USER, tools=[TOOL, {}]),
    messages(USER, tools=json.dumps([TOOL])),
    messages(USER, tools=json.dumps([TOOL], indent=2)),
    messages(USER, tools="null"),
    messages(USER, tools="[]"),
    messages(USER, tools=7),
    messages(USER, tools=True),
    messages(USER, tools=["f"]),
    messages(USER, tools=[None]),
    messages(USER, tools=[[TOOL]]),
    messages(USER, tools={"name": "f"}),
    messages(USER, tools="none"),
    messages(USER, tools=json.dumps(json.dumps([TOOL]))),
    messages(USER, documents=None),
    messages(USER, documents=[]),
    messages(USER, documents=[{"title": "t", "text": None}]),
    messages(USER, documents=["t"]),
    messages(USER, documents=[None]),
    messages(USER, chat_template_kwargs={}),
    messages(USER, chat_template_kwargs={"enable_thinking": False, "bos_token": "B"}),
    messages(USER, chat_template_kwargs={"tools": []}),
    messages(USER, chat_template_kwargs={"messages": []}),
    messages(USER, chat_template_kwargs={"add_generation_prompt": False}),
    messages(None),
    messages("x"),
]


class Template:
    """In place of a compiled template: keeps what it is given."""

    def render(self, messages, tools, documents, add_generation_prompt, **kwargs):
        self.seen = {"messages": messages, "tools": tools, "documents": documents, "kwargs": kwargs}
        return ""


def seen(record):
    template = Template()
    utils._compile_jinja_template = lambda source: template
    tools = record.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    conversation = utils._normalize_chat_messages(record["messages"])
    utils.render_jinja_template(
        conversations=[conversation],
        tools=tools,
        documents=record.get("documents"),
        chat_template="",
        add_generation_prompt=True,
        **record.get("chat_template_kwargs", {}),
    )
    return template.seen


cases = []
for record in RECORDS:
    try:
        cases.append({"record": record, "seen": seen(record)})
    except (ValueError, TypeError) as error:
        cases.append({"record": record, "raised": type(error).__name__})
path = Path(__file__).with_name("messages.json")
path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n", encoding="utf-8")
print(len(cases), sum("raised" in case for case in cases))
