"""``python -m millrace_trainer.jobs.launch SPEC.json``: run the training job under torchrun.

This process becomes torchrun (exec keeps the death signal), so that torchrun dies with the
service, and each rank, asking for the same signal, with torchrun. The rendezvous is torchrun's
own, on a free port of the loopback interface: two runs at once do not meet.
"""

import json
import os
import sys
from pathlib import Path

from millrace_runtime.jobs import die_with_parent

_JOB_MODULE = "millrace_trainer.jobs.pretrain"


def main() -> None:
    die_with_parent()
    spec_path = sys.argv[1]
    settings = json.loads(Path(spec_path).read_text())
    processes = settings.get("hyperparameters", {}).get("processes", 1)
    threads = max(1, settings.get("threads", 1) // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *torchrun, "-m", _JOB_MODULE, spec_path]
    os.execv(sys.executable, command)  # noqa: S606  # our own arguments, no shell


if __name__ == "__main__":
    main()
