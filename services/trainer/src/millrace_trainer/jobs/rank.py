"""``python -m millrace_trainer.jobs.rank SPEC.json``: one rank of a training job, by torchrun.

It asks to die with torchrun and takes standard output for the protocol first, and only then
imports what trains: torch and DeepSpeed take seconds, in which a killed torchrun would leave it
behind, and print as they go.
"""

import os

from millrace_runtime import jobs
from millrace_runtime.jobs import Reporter
from millrace_trainer.jobs.specification import Spec
from millrace_trainer.jobs.storage import full_disk_is_said


def work(spec: Spec, reporter: Reporter) -> None:
    """See ``pretrain.work``."""
    from millrace_trainer.jobs import pretrain

    with full_disk_is_said(spec.output_directory):
        pretrain.work(spec, reporter)


if __name__ == "__main__":
    if os.environ.get("RANK", "0") != "0":
        os.dup2(2, 1)  # the first rank speaks for all; the others' words go to the log
    jobs.run("trainer.pretrain", Spec, work)
