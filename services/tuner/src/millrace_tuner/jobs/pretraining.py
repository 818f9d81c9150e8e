"""Going on with pre-training on plain text: ``python -m millrace_tuner.jobs.pretraining``.

Reads a base checkpoint and a file of texts, lays the texts one behind the other with an
end-of-text after each, cuts them into full windows and learns every token (Ibrahim et al. 2024,
arXiv:2403.08763): the learning rate is warmed up anew and decays as a cosine, and windows of the
data that the base was trained on are mixed in against forgetting. What it writes and says is as
of ``jobs.supervised``; a window is an example. ``valid_loss`` is of windows of the new text that
are not trained on, ``valid_base_loss`` of held-out tokens of the base's own data.

Reasons of failure: those of ``jobs.supervised`` but for chat templates, WRONG_FORMAT,
END_OF_TEXT_MISSING, REPLAY_UNAVAILABLE, BASE_DATA_INVALID.
"""

from millrace_runtime import jobs
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import flow, text_windows
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import ContinuedPretraining


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    method = spec.method
    if not isinstance(method, ContinuedPretraining):
        raise JobError("INVALID_SPEC", f"method.kind is {method.kind}, not pretraining")
    texts = text_windows.read(spec)
    text_windows.require_replay(spec)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.codec import load_plain_codec
    from millrace_tuner.jobs.pretraining_objective import PretrainingObjective
    from millrace_tuner.jobs.training import Run

    codec = load_plain_codec(spec.base_checkpoint_path / "model")

    def on_progress(done: int, total: int) -> None:
        cancellation.raise_if_requested()
        reporter.progress("prepare", done, total)

    windows = text_windows.prepare(spec, texts, codec, on_progress)
    replayed = text_windows.replayed(spec, windows, len(codec.tokenizer))
    objective = PretrainingObjective(codec, method, windows, replayed)
    Run(spec, objective, codec.tokenizer, reporter, cancellation).train()


if __name__ == "__main__":
    jobs.run("tuner.pretraining", Spec, work, lambda spec: spec.output_directory)
