"""Artifacts with golden prompts, for tests of how rollouts are judged by them."""

from collections.abc import Sequence

from registry_builders import World

from millrace_runtime import golden
from millrace_runtime.golden import GoldenPrompt

PROMPTS = [
    GoldenPrompt(f"golden/{number}", [number, 5, 6], [7, 8, 9], "", "", original=-1.0)
    for number in range(8)
]


def finish(world: World, number: int, prompts: Sequence[GoldenPrompt] = PROMPTS) -> None:
    """The compressor finishes an artifact with golden prompts."""
    world.artifact(f"demo-{number}", write=lambda folder: golden.write(folder, prompts))
    world.finish_again(number)
