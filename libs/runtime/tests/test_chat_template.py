"""Prompts equal those of transformers' ``apply_chat_template``, byte for byte."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from millrace_runtime import chat_template
from millrace_runtime.errors import FailedPrecondition, InvalidArgument

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [
    {"role": "system", "content": 'Be <b>kind</b> & "brief".'},
    {"role": "user", "content": "  héllo 🙂\n\n"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "{{ 7 * 7 }}{% raw %}", "name": "ann"},
]

TEMPLATES = {
    "chatml": CHATML,
    "whitespace": (
        "  {% for m in messages %}\n    {% if m.role == 'user' %}\n  [{{ m.content | trim }}]\n"
        "    {% endif %}\n{% endfor %}\n\n"
    ),
    "dashes": "{%- for m in messages -%} {{- m['content'] -}} {%- endfor -%}",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.content }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "tojson": "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2, ensure_ascii=True) }}",
    "generation": (
        "{% set outer = 'a' %}{% for m in messages %}{% generation %}{% set outer = 'b' %}"
        "{{ m.content }}{{ outer }}{% endgeneration %}{{ outer }}{% endfor %}"
    ),
    "tokens": "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}"
        "{% set ns.n = ns.n + m.content|length %}{% endfor %}"
        "{{ ns.n }}{{ messages[-1:] }}{{ messages[::-1][0].content }}"
    ),
    "methods": "{{ messages[0].content.strip().split(' ')[0].upper() }}{{ messages[3].name }}",
    "undefined": "{{ tools }}{{ documents }}{{ nothing }}{{ messages[0].nothing }}",
    "macro": (
        "{% macro say(m) %}<{{ m.role }}>{% endmacro %}"
        "{% for m in messages %}{{ say(m) }}{% endfor %}"
    ),
    "prompt": "{% if add_generation_prompt %}go{% else %}stop{% endif %}",
    "no final newline kept": "{{ messages[0].content }}\n",
    "year": "{{ strftime_now('%Y')|length }}",
}


def expected(template: str, messages: list[dict[str, Any]]) -> str:
    rendered, _ = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=True,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    return str(rendered[0])


def rendered(template: str, messages: list[dict[str, Any]]) -> str:
    return chat_template.render(
        template, messages, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_parity(name: str) -> None:
    assert rendered(TEMPLATES[name], CHAT) == expected(TEMPLATES[name], CHAT)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["chatml", "whitespace", "dashes", "tojson", "tokens"]),
)
def test_parity_for_any_text(messages: list[dict[str, Any]], name: str) -> None:
    assert rendered(TEMPLATES[name], messages) == expected(TEMPLATES[name], messages)


def test_a_template_may_refuse() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidArgument, match="roles must alternate") as caught:
        rendered(template, CHAT)
    assert caught.value.field == "messages"


@pytest.mark.parametrize("template", ["", "{% for %}"])
def test_no_template_and_a_broken_one(template: str) -> None:
    with pytest.raises(FailedPrecondition):
        rendered(template, CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.undefined.deeper }}",
        "{{ 1 / 0 }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    with pytest.raises(InvalidArgument):
        rendered(template, CHAT)
