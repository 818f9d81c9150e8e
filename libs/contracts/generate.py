"""Generate the contracts' Python code from protos/ (``make protos``).

``--check`` writes nothing and fails when the committed code differs from what would be
written. ``--image FILE`` writes only the descriptor set, source information included, which
is what ``buf lint`` and ``buf breaking`` read.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
PACKAGES = ROOT / "libs/contracts/src"
RULES = "buf/validate/validate.proto"


def rules_descriptors(folder: Path) -> Path:
    """Write protovalidate's own descriptors for protoc to read: the package ships no .proto."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    path = folder / "validate.binpb"
    path.write_bytes(files.SerializeToString())
    return path


def run_protoc(*arguments: str, rules: Path, extra: tuple[str, ...] = ()) -> None:
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = ["protoc", f"-I{PROTOS}", f"--descriptor_set_in={rules}"]
    status = protoc.main([*command, *arguments, *sources, *extra])
    if status != 0:
        sys.exit(status)


def generate(target: Path, rules: Path) -> None:
    """Write messages, stubs and their types below ``target``."""
    out = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    run_protoc(*out, rules=rules, extra=(RULES,))


def differences(generated: Path) -> list[Path]:
    """Paths that stand differently, or only on one side, in the committed tree."""
    fresh = {path.relative_to(generated) for path in generated.rglob("*_pb2*")}
    committed = {p.relative_to(PACKAGES) for p in PACKAGES.rglob("*_pb2*") if p.suffix != ".pyc"}
    changed = {
        path
        for path in fresh & committed
        if not filecmp.cmp(generated / path, PACKAGES / path, shallow=False)
    }
    return sorted(changed | (fresh ^ committed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rules = rules_descriptors(folder)
        if options.image:
            image = f"--descriptor_set_out={options.image}"
            run_protoc("--include_imports", "--include_source_info", image, rules=rules)
            return
        generated = folder / "python"
        generated.mkdir()
        generate(generated, rules)
        drift = differences(generated)
        if options.check and drift:
            sys.exit("run `make protos`; these differ:\n" + "\n".join(map(str, drift)))
        if not options.check:
            for path in drift:
                (PACKAGES / path).unlink(missing_ok=True)
            shutil.copytree(generated, PACKAGES, dirs_exist_ok=True)
            print(f"{len(drift)} generated files changed")


if __name__ == "__main__":
    main()
