"""Print how large functions and files are, against the project's budgets.

Budgets: functions median <= 10 lines, 90th percentile <= 35, none over 80 outside a training
loop; files <= 400 lines; a service's __main__ <= 80. Fails only where a hard one is broken.
"""

import ast
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAXIMUM_FUNCTION_LINES = 80
MAXIMUM_FILE_LINES = 400
MAXIMUM_MAIN_LINES = 80
# Training loops, which read best as one flat page.
LOOPS = {"services/trainer/src/millrace_trainer/jobs/pretrain.py"}


def sources() -> list[Path]:
    packages = [*ROOT.glob("libs/*/src"), *ROOT.glob("services/*/src")]
    return [
        path
        for package in packages
        for path in sorted(package.rglob("*.py"))
        if "_pb2" not in path.name and "migrations/versions" not in str(path)
    ]


def function_lengths(path: Path) -> list[tuple[int, str]]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [
        (node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]


def problems(files: dict[Path, int], functions: list[tuple[int, str]]) -> list[str]:
    found = [
        f"{path.relative_to(ROOT)}: {lines} lines, at most {limit}"
        for path, lines in files.items()
        if lines > (limit := limit_of(path))
    ]
    return found + [
        f"{where}: {lines} lines, at most {MAXIMUM_FUNCTION_LINES}"
        for lines, where in functions
        if lines > MAXIMUM_FUNCTION_LINES and where.split(":")[0] not in LOOPS
    ]


def limit_of(path: Path) -> int:
    in_service = path.name == "__main__.py" and "services" in path.parts
    return MAXIMUM_MAIN_LINES if in_service else MAXIMUM_FILE_LINES


def main() -> None:
    files = {path: len(path.read_text().splitlines()) for path in sources()}
    functions = [length for path in files for length in function_lengths(path)]
    lengths = sorted(length for length, _ in functions)
    p90 = lengths[int(len(lengths) * 0.9)]
    print(
        f"{len(files)} files, {sum(files.values())} lines, "
        f"median {statistics.median(files.values()):g}; "
        f"{len(lengths)} functions: median {statistics.median(lengths):g}, "
        f"p90 {p90}, longest {lengths[-1]} lines"
    )
    broken = problems(files, functions)
    if broken:
        sys.exit("over budget:\n" + "\n".join(broken))


if __name__ == "__main__":
    main()
