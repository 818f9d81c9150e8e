"""The other side of ``sandbox.py``: confines itself, loads a grader, and grades until told to end.

Run as a file by ``python -I -S -B``, with the standard library alone. One JSON object a line:

    <- {"confine": {...}, "path": [...], "source": "...", "check": bool}
    -> {"ready": true} | {"error": {"kind": ..., "message": ..., "line": ...}}
    <- {"id": ..., "sample": {...}, "item": {...}, "cpu_seconds": 30}
    -> {"id": ..., "reward": 0.5} | {"id": ..., "error": {...}}

The user's code has no standard streams: what it prints goes nowhere.
"""

import ast
import json
import math
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

FILENAME = "<grader>"
_MOST_FRAMES, _MOST_CHARACTERS = 8, 2000
_RUNTIME, _SYNTAX, _UNAVAILABLE = "runtime", "syntax", "sandbox_unavailable"


def main() -> None:
    requests, answers = _take_streams()
    beginning = json.loads(requests.readline())
    confine = _confinement()
    try:
        confine.confine(beginning["confine"])
    except (confine.Unconfined, OSError) as error:
        _say(answers, {"error": {"kind": _UNAVAILABLE, "message": str(error)}})
        return
    sys.path += beginning["path"]
    source = beginning["source"]
    try:
        grade = _loaded(source) if not beginning["check"] else _check(source)
    except BaseException as error:
        _say(answers, {"error": _explained(error, source)})
        return
    _say(answers, {"ready": True})
    for line in requests:
        _say(answers, _answer(grade, json.loads(line), source))


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Move the pipes away from the standard streams, which lead nowhere from now on."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    os.close(nowhere)
    return requests, answers


def _confinement() -> Any:
    """``confinement.py`` beside this file; -I keeps this folder off the path."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("confinement", Path(__file__).with_name("confinement.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check(source: str) -> Any:
    """Read the source without running it; there is nothing to be called then.

    Raises:
        SyntaxError: also when it defines no ``grade``.
    """
    tree = ast.parse(source, FILENAME)
    compile(tree, FILENAME, "exec")
    if not any(_binds_grade(node) for node in ast.walk(tree)):
        raise SyntaxError("it defines no function grade(sample, item)")


def _binds_grade(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == "grade"
    if isinstance(node, ast.alias):
        return (node.asname or node.name) == "grade"
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "grade"


def _loaded(source: str) -> Callable[[Any, Any], Any]:
    scope: dict[str, Any] = {"__name__": "grader"}
    exec(compile(source, FILENAME, "exec"), scope)  # noqa: S102  # what this process is for
    grade = scope.get("grade")
    if not callable(grade):
        raise SyntaxError("it defines no function grade(sample, item)")
    return grade  # type: ignore[no-any-return]


def _answer(grade: Any, request: dict[str, Any], source: str) -> dict[str, Any]:
    _grant_cpu(request["cpu_seconds"])
    try:
        reward = _number(grade(request["sample"], request["item"]))
    except BaseException as error:
        return {"id": request["id"], "error": _explained(error, source)}
    return {"id": request["id"], "reward": reward}


def _grant_cpu(seconds: int) -> None:
    """So much processor time from now on; then SIGXCPU ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _number(value: Any) -> float:
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        raise TypeError(f"grade returned {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"grade returned {number}, not a finite number")
    return number


def _explained(error: BaseException, source: str) -> dict[str, Any]:
    """What went wrong, with the lines of the user's own code; never fails itself."""
    kind = _SYNTAX if isinstance(error, SyntaxError) else _RUNTIME
    try:
        message = _story(error, source.splitlines())
    except BaseException:  # its own __str__ may do anything
        message = type(error).__name__
    line = error.lineno if isinstance(error, SyntaxError) else None
    return {"kind": kind, "message": message[-_MOST_CHARACTERS:], "line": line}


def _story(error: BaseException, lines: list[str]) -> str:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILENAME
    ]
    told = [
        f"line {frame.lineno}, in {frame.name}: {_line(lines, frame.lineno)}"
        for frame in frames[-_MOST_FRAMES:]
    ]
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}: " if error.lineno else ""
        return f"{where}{error.msg}"
    text = str(error)
    return "\n".join([*told, f"{type(error).__name__}: {text}" if text else type(error).__name__])


def _line(lines: list[str], number: int | None) -> str:
    return lines[number - 1].strip()[:200] if number and number <= len(lines) else ""


def _say(answers: BinaryIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
