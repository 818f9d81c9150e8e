"""OpenVINO IR, run by OpenVINO GenAI: the format of CPUs."""

from collections.abc import Mapping
from pathlib import Path

from millrace_compressor.jobs import evaluate, quantize
from millrace_compressor.jobs.format import Conversion


class OpenvinoIr:
    """``target``: how its weights are kept."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._dtype = "int8" if target == "openvino-int8" else "float32"

    def convert(self, conversion: Conversion, output: Path) -> None:
        quantize.convert(conversion.model, self._target, output)

    def inspect(self, output: Path) -> Mapping[str, float]:
        share = quantize.inspect(output, self._target)
        return {"int8": share, "float32": 1 - share}

    def size_bytes(self, output: Path) -> int:
        return (output / quantize.WEIGHTS_FILE).stat().st_size

    def open(self, output: Path, threads: int) -> evaluate.Artifact:
        return evaluate.Artifact(output, threads, self._dtype)

    def exact(self, output: Path, threads: int) -> evaluate.Artifact:
        return evaluate.Artifact(output, threads, self._dtype, evaluate.EXACT)
