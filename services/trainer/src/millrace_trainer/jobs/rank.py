"""``python -m millrace_trainer.jobs.rank SPEC.json``: one rank of a training job, by torchrun.

It asks to die with torchrun and takes standard output for the protocol first, and only then
imports what trains: torch and DeepSpeed take seconds, in which a killed torchrun would leave it
behind, and print as they go.

The first rank speaks for all. Another has one thing to say, why it failed, and says it before
the first can miss it.
"""

from millrace_runtime import jobs
from millrace_runtime.jobs import Reporter
from millrace_trainer.jobs.specification import Spec


def work(spec: Spec, reporter: Reporter) -> None:
    """See ``pretrain.work``."""
    from millrace_trainer.jobs import pretrain, ranks

    with ranks.loss_is_said():
        pretrain.work(spec, reporter)


if __name__ == "__main__":
    jobs.run("trainer.pretrain", Spec, work, lambda spec: spec.output_directory)
