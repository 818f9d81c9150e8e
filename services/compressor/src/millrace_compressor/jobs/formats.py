"""Which format each target is."""

from millrace_compressor.jobs.format import Format
from millrace_compressor.jobs.openvino_ir import OpenvinoIr
from millrace_compressor.jobs.plain import Plain
from millrace_compressor.jobs.pruning import Pruned
from millrace_compressor.jobs.rounded import Rounded
from millrace_runtime.jobs import JobError


def format_of(target: str) -> Format:
    """The format of a target, by its name (``domain.Target``).

    What serves on this machine is imported with this file, so that a process that waits for a job
    has done it already; what others need is imported when a job wants it.
    """
    if target.startswith("openvino"):
        return OpenvinoIr(target)
    if target == "safetensors":
        return Plain()
    if target == "safetensors-bf16":
        return Rounded()
    if target == "safetensors-pruned":
        return Pruned()
    if target.startswith("onnx"):
        from millrace_compressor.jobs.onnx_model import OnnxRuntime

        return OnnxRuntime(target)
    if target.startswith("tensorrt"):
        from millrace_compressor.jobs.tensorrt_model import TensorRt

        return TensorRt(target)
    if target.startswith("compressed-tensors"):
        from millrace_compressor.jobs.compressed_tensors import CompressedTensors

        return CompressedTensors(target)
    raise JobError("TARGET_UNKNOWN", f"there is no target {target!r}")
