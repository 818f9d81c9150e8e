"""``python -m millrace_trainer.jobs.launch SPEC.json``: run the training job under torchrun.

This process becomes torchrun (exec keeps the death signal), so that torchrun dies with the
service, and each rank, asking for the same signal, with torchrun.

The ranks find one another through files in a directory of this launch alone. So two runs at
once cannot meet, and nothing listens outside the loopback interface: torchrun's ``--standalone``
would open its store, which asks nobody for a password, on every interface.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError

from millrace_runtime.jobs import (
    PARENT_VARIABLE,
    JobError,
    Reporter,
    die_with_parent,
    storage_fault_is_said,
)
from millrace_trainer.jobs.specification import Spec

STORE_VARIABLE = "MILLRACE_TRAINER_STORE"
"""Names the file store of the ranks (``file://…``); unset, torch's own variables are read."""

_JOB_MODULE = "millrace_trainer.jobs.rank"
_MEETING_PREFIX = "torchrun-"


def main() -> None:
    """Never returns."""
    die_with_parent()
    spec_path = Path(sys.argv[1]).resolve()
    reporter = Reporter(sys.stdout)
    try:
        with storage_fault_is_said(spec_path.parent):
            spec = _read(spec_path, reporter)
            meeting = _meeting_place(spec_path.parent)
    except JobError as error:
        reporter.report("error", reason=error.reason, message=str(error))
        sys.exit(1)
    processes = spec.hyperparameters.processes
    os.environ |= {
        "OMP_NUM_THREADS": str(max(1, spec.threads // processes)),
        PARENT_VARIABLE: str(os.getpid()),  # torchrun's too, and it is the ranks' parent
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        STORE_VARIABLE: (meeting / "ranks").as_uri(),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", *_options(meeting, processes)]
    os.execv(sys.executable, [*torchrun, "-m", _JOB_MODULE, str(spec_path)])  # noqa: S606


def _read(path: Path, reporter: Reporter) -> Spec:
    """The specification, said to have begun with.

    Importing torch twice over comes after this, and takes seconds.

    Raises:
        JobError: INVALID_SPEC.
    """
    try:
        spec = Spec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise JobError("INVALID_SPEC", str(error)) from error
    reporter.progress("start", 0, spec.hyperparameters.total_steps)
    return spec


def _meeting_place(parent: Path) -> Path:
    """An empty directory. Those of earlier launches, which could not tidy after exec, go."""
    for old in parent.glob(f"{_MEETING_PREFIX}*"):
        shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_MEETING_PREFIX, dir=parent))


def _options(meeting: Path, processes: int) -> list[str]:
    return [
        "--nnodes=1",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={meeting / 'agent'}",
        f"--rdzv-id={meeting.name}",
        "--local-addr=127.0.0.1",
        f"--log-dir={meeting / 'log'}",
    ]


if __name__ == "__main__":
    main()
