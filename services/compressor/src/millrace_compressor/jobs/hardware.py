"""What this machine multiplies fast, so that a search tries what is of use here."""

from dataclasses import dataclass
from pathlib import Path

import torch

# Products of 8-bit integers: x86 (VNNI, AMX) and Arm (SDOT, I8MM), as the kernel names them.
_INT8_PRODUCTS = frozenset(
    {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"}
)
_TOLD = _INT8_PRODUCTS | {"avx2", "avx512f", "amx_bf16"}
_FP8_CAPABILITY = (8, 9)  # Ada, Hopper and later


@dataclass(frozen=True)
class Hardware:
    """``instructions``: those of the CPU that matter here; ``capability``: of CUDA, None: no GPU
    is seen."""

    instructions: frozenset[str]
    capability: tuple[int, int] | None = None

    @property
    def has_int8_products(self) -> bool:
        return bool(self.instructions & _INT8_PRODUCTS)

    @property
    def has_fp8(self) -> bool:
        return self.capability is not None and self.capability >= _FP8_CAPABILITY

    def __str__(self) -> str:
        if self.capability is not None:
            return f"GPU of CUDA's capability {self.capability[0]}.{self.capability[1]}"
        return f"CPU with {', '.join(sorted(self.instructions)) or 'no vector instructions known'}"


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Hardware:
    """The CPU by the kernel's word, a GPU by torch's."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    return Hardware(instructions(cpuinfo), capability)


def instructions(cpuinfo: Path) -> frozenset[str]:
    """Of the first processor: ``flags`` on x86, ``Features`` on Arm. Empty: it is not told."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split()) & _TOLD
    return frozenset()
