"""What every engine inside Triton is. For the type checker; not copied into Triton's repository."""

from typing import TYPE_CHECKING, Any, Protocol


class Engine(Protocol):
    """One version of one model, as Triton's Python backend drives it.

    Its tensors, its sampling parameters and its errors are said in ``openvino_genai.py``; the
    gateway relies on them and on nothing else, so an engine that cannot do something refuses it
    with INVALID_ARG and the parameter's name, and never leaves it out.
    https://github.com/triton-inference-server/python_backend/tree/r24.10#usage
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load ``<version folder>/artifact``.

        Raises:
            TritonModelException: it cannot be served; the version is then not loaded.
        """
        ...

    def execute(self, requests: list[Any]) -> None:
        """Take requests on; returns at once. Each is answered through its response sender."""
        ...

    def finalize(self) -> None:
        """Stop. No request is left."""
        ...


if TYPE_CHECKING:
    from millrace_registry.engines import openvino_genai, transformers_batching

    ENGINES: tuple[type[Engine], ...] = (
        openvino_genai.TritonPythonModel,
        transformers_batching.TritonPythonModel,
    )
