from tuner_parts import Parts

from millrace_tuner.housekeeping import Housekeeping


def test_the_state_of_a_job_that_ended_is_removed_and_its_checkpoints_stay(parts: Parts) -> None:
    ended, running = parts.create(), parts.create()
    for job in (ended, running):
        state = parts.attempt.output_directory(job) / "training_state/00000020"
        state.mkdir(parents=True)
        (state / "optimizer.pt").write_text("state")
        (parts.attempt.output_directory(job) / "checkpoint-00000020").mkdir()
    parts.app.cancel("acme", ended.id)
    housekeeping = Housekeeping(parts.app, parts.store, parts.attempt.output_directory, parts.clock)
    housekeeping.reconcile()
    directory = parts.attempt.output_directory(ended)
    assert (directory / "training_state").exists()  # its process may still be writing
    parts.clock.advance(61)
    housekeeping.reconcile()
    assert [path.name for path in directory.iterdir()] == ["checkpoint-00000020"]
    assert (parts.attempt.output_directory(running) / "training_state").exists()
