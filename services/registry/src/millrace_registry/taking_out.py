"""What a Triton endpoint lets go of."""

from collections.abc import Collection, Mapping

from millrace_registry.guarded import GuardedRepository, GuardedTriton
from millrace_registry.triton import Loaded


def take_out(
    triton: GuardedTriton,
    repository: GuardedRepository,
    listed: Mapping[str, Collection[int]],
    index: Mapping[tuple[str, int], Loaded],
) -> None:
    """Unload models that nobody wants or tries, and remove folders that nothing runs from.

    Args:
        listed: versions that are wanted, by the name of their model on Triton.
        index: what Triton runs.
    """
    busy = {key for key, loaded in index.items() if loaded.state != "UNAVAILABLE"}
    for name in {*repository.models(), *(model for model, _ in busy)} - set(listed):
        if repository.is_on_trial(name):
            continue
        if any(model == name for model, _ in busy):
            triton.unload(name)
        else:
            repository.remove_model(name)
    for name, numbers in listed.items():
        for number in repository.versions(name):
            if number not in numbers and (name, number) not in busy:
                repository.remove_version(name, number)
