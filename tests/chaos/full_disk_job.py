"""A job that commits a directory, as the stages' jobs do."""

from pathlib import Path

from pydantic import BaseModel

from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import Reporter

_PART_BYTES = 40_000


class Spec(BaseModel):
    output: Path


def work(spec: Spec, reporter: Reporter) -> None:
    """Leave a committed directory at ``spec.output``."""
    temporary = manifest.temporary_sibling(spec.output / "step-1")
    (temporary / "weights").write_bytes(b"w" * _PART_BYTES)
    digest = manifest.commit(temporary, spec.output / "step-1", "checkpoint", {})
    reporter.report("result", digest=digest)


if __name__ == "__main__":
    jobs.run("test.save", Spec, work, lambda spec: spec.output)
