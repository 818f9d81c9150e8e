"""``make bench``: measures, prints a table, writes JSON, and compares two commits."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import figures, handover, model, neighbours, overload, proxy, road, tuning
from tests.bench.figures import Figure

HOME = Path(".millrace/bench")
REPORT = HOME / "bench.json"
_PARTS = ("road", "proxy", "overload", "neighbours", "tuning", "handover")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description="How fast the road of a request is, as ratios in one run."
    )
    parser.add_argument("--only", default="", help=f"some of: {', '.join(_PARTS)}")
    parser.add_argument(
        "--load-seconds",
        type=float,
        default=overload.SECONDS,
        help="how long each load of overload and neighbours lasts",
    )
    parser.add_argument("--baseline", help="a commit to measure too, and to compare with")
    arguments = parser.parse_args()
    parts = [part.strip() for part in arguments.only.split(",") if part.strip()] or list(_PARTS)
    unknown = sorted(set(parts) - set(_PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are: {', '.join(_PARTS)}")
    before = _of_commit(arguments.baseline, parts) if arguments.baseline else None
    found = _measure(parts, arguments.load_seconds, lambda line: print(f"  {line}", flush=True))
    figures.write(found, REPORT)
    print(figures.table(found))
    if before is not None:
        print(f"\nagainst {arguments.baseline}\n{figures.comparison(before, found)}")
    print(f"written to {REPORT}")
    return 0


def _measure(parts: Sequence[str], load_seconds: float, say: Callable[[str], None]) -> list[Figure]:
    HOME.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as directory:
        folder = Path(directory)
        if "road" in parts:
            found += road.measure(folder, model.make(HOME / "model"), say)
        if "proxy" in parts:
            found += proxy.measure(folder, HOME / "litellm", say)
        if "overload" in parts:
            artifact = model.make(HOME / "model")
            found += overload.measure(folder / "overload", artifact, say, load_seconds)
        if "neighbours" in parts:
            artifact = model.make(HOME / "model")
            found += neighbours.measure(folder / "neighbours", artifact, say, load_seconds)
        if "tuning" in parts:
            found += tuning.measure(folder / "tuning", say)
        if "handover" in parts:
            found += handover.measure(folder / "handover", say)
    return found


def _of_commit(commit: str, parts: Sequence[str]) -> list[Figure]:
    """The same benchmark over the services of another commit, in a work tree of its own."""
    with tempfile.TemporaryDirectory(prefix="millrace-baseline-") as directory:
        tree = Path(directory, "tree")
        subprocess.run(["git", "worktree", "add", "--detach", tree, commit], check=True)
        try:
            return _measured_in(tree, parts)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], check=True)


def _measured_in(tree: Path, parts: Sequence[str]) -> list[Figure]:
    # The benchmark is today's, whatever the commit had: only what it measures is the commit's.
    shutil.copytree("tests/bench", tree / "tests/bench", dirs_exist_ok=True)
    (tree / ".millrace").symlink_to(Path(".millrace").resolve())
    (tree / ".venv-triton").symlink_to(Path(".venv-triton").resolve())
    sources = [*tree.glob("libs/*/src"), *tree.glob("services/*/src"), tree]
    environment = {"PYTHONPATH": ":".join(map(str, sources)), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "tests.bench", "--only", ",".join(parts)]
    subprocess.run(command, check=True, cwd=tree, env=environment)
    return figures.read(REPORT)


if __name__ == "__main__":
    sys.exit(main())
