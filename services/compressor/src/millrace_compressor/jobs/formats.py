"""Which format each target is."""

from millrace_compressor.jobs.format import Format
from millrace_compressor.jobs.openvino_ir import OpenvinoIr
from millrace_compressor.jobs.plain import Plain


def format_of(target: str) -> Format:
    """The format of a target, by its name (``domain.Target``).

    What serves on this machine is imported with this file, so that a process that waits for a job
    has done it already; what others need is imported when a job wants it.
    """
    if target.startswith("openvino"):
        return OpenvinoIr(target)
    if target == "safetensors":
        return Plain()
    raise NotImplementedError(target)
