import ast
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_builders import read_jsonl

from millrace_data.jobs import instruction_pairs
from millrace_data.jobs.instruction_pairs import Spec, pairs_of, rejection, work
from millrace_examples.report import check
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter

Reported = tuple[Reporter, Callable[[], list[dict[str, Any]]]]

SOURCE = '''
class Box:
    def area(
        self, scale: int = 1
    ) -> int:
        """The area of the box,
        scaled.
        """
        # A comment of the body.
        text = """a
at the margin"""
# A comment at the margin.
        return self.width * scale + len(text)

    def empty(self):
        """Nothing but a docstring."""

    def one_line(self): "All on one line, with a body."; return 1

    def bare(self):
        return 2

async def wait(seconds):
    """Wait for so many seconds."""
    await sleep(seconds)
    def inner():
        """A function inside."""
        return seconds * 1000
    return inner
'''


def pairs(tmp_path: Path, source: str = SOURCE) -> tuple[list[Any], Counter[str]]:
    path = tmp_path / "module.py"
    path.write_text(source)
    left_out: Counter[str] = Counter()
    return list(pairs_of(path, left_out)), left_out


def test_head_and_body_together_are_the_function(tmp_path: Path) -> None:
    found, left_out = pairs(tmp_path)
    functions = {
        node.name: node
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    names = []
    for pair in found:
        (function,) = ast.parse(f"{pair.prompt}\n{pair.body}").body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        names.append(function.name)
        assert len(function.body) == len(functions[function.name].body)
        assert pair.prompt.rstrip().endswith('"""')
        assert '"""' not in pair.prompt.rstrip().removesuffix('"""').split('"""', 1)[1]
    assert sorted(names) == ["area", "inner", "wait"]
    assert left_out == {"no_body": 2}


def test_a_file_that_does_not_parse_is_counted(tmp_path: Path) -> None:
    assert pairs(tmp_path, "print 'two'\n") == ([], {"unparsable_file": 1})


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"maximum_prompt_length": 30}, "prompt_too_long"),
        ({"maximum_body_length": 30}, "body_too_long"),
        ({"minimum_body_length": 300}, "trivial_body"),
        ({"minimum_docstring_length": 40}, "docstring_too_short"),
        ({}, None),
    ],
)
def test_limits(tmp_path: Path, limits: dict[str, int], reason: str | None) -> None:
    (area, *_), _ = pairs(tmp_path)
    assert rejection(area, Spec(output_path=tmp_path / "out", **limits)) == reason


def run(tmp_path: Path, name: str, reported: Reported, **settings: Any) -> tuple[Path, Any]:
    spec = Spec(output_path=tmp_path / name, **settings)
    reporter, lines = reported
    work(spec, reporter)
    return spec.output_path, lines()[-1]


def test_the_standard_library_gives_a_file_fit_for_upload(
    tmp_path: Path, reporter_lines: Reported
) -> None:
    path, result = run(tmp_path, "one", reporter_lines)
    _, repeated = run(tmp_path, "other", reporter_lines)
    assert result["digest"] == repeated["digest"]
    assert manifest.verify(path, result["digest"]).kind == instruction_pairs.KIND
    examples = result["metadata"]["examples"]
    assert examples["train"] > 1000
    prompts: dict[str, set[str]] = {}
    for part in ("train", "heldout"):
        report = check(path / f"{part}.jsonl")
        assert report.problems == ()
        assert report.examples == examples[part]
        rows = read_jsonl(path / f"{part}.jsonl")
        prompts[part] = {row["messages"][1]["content"] for row in rows}
        assert len(prompts[part]) == len(rows)
    assert not prompts["train"] & prompts["heldout"]


def test_started_again_it_finds_its_work_done(tmp_path: Path, reporter_lines: Reported) -> None:
    path, first = run(tmp_path, "out", reporter_lines, maximum_examples=20, system_prompt="")
    reported = len(reporter_lines[1]())
    _, again = run(tmp_path, "out", reporter_lines, maximum_examples=20, system_prompt="")
    assert again == first
    assert len(reporter_lines[1]()) == reported + 1
    row = read_jsonl(path / "train.jsonl")[0]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert first["metadata"]["examples"]["train"] == 20
    with pytest.raises(JobError, match="another recipe"):
        run(tmp_path, "out", reporter_lines, maximum_examples=30, system_prompt="")


def test_too_few(tmp_path: Path, reporter_lines: Reported) -> None:
    with pytest.raises(JobError, match="0 examples are left") as raised:
        run(tmp_path, "out", reporter_lines, maximum_prompt_length=1)
    assert raised.value.reason == "TOO_FEW_EXAMPLES"
