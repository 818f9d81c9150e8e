"""What a real mesh serves is signed, from the dataset to the artifact."""

from pathlib import Path

import pytest

from millrace_runtime import manifest, signing
from millrace_runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME
from millrace_runtime.signing import SignatureRefused, Statement, Trust
from tests.e2e.lifecycle import Mesh


def statements(data: Path, trust: Trust) -> dict[str, Statement]:
    """By digest: of every committed directory that a stage has published."""
    found = {}
    for path in data.rglob(SIGNATURE_NAME):
        _, digest = manifest.read(path.parent)
        found[digest] = signing.verify(path.read_bytes(), digest, trust)
    return found


def test_what_is_served_leads_back_to_its_dataset_by_signatures(mesh: Mesh, model: str) -> None:
    versions = mesh.get(f"/versions?model={model}")["data"]
    assert any(version["status"] == "serving" for version in versions)
    signed = statements(mesh.layout.home.data, Trust.of(mesh.layout.trusted_keys))
    artifacts = [each for each in signed.values() if each.kind == "artifact"]
    assert artifacts
    for artifact in artifacts:
        (checkpoint,) = (signed[parent] for parent in artifact.parents)
        assert checkpoint.kind == "checkpoint"
        kinds = {signed[parent].kind for parent in checkpoint.parents if parent in signed}
        assert kinds & {"dataset", "checkpoint"}


def test_the_private_key_is_its_owners_alone(mesh: Mesh) -> None:
    assert mesh.layout.signing_key.stat().st_mode & 0o077 == 0
    foreign = Trust([signing.make_key().public_key()])
    path = next(mesh.layout.home.data.rglob(SIGNATURE_NAME))
    assert (path.parent / MANIFEST_NAME).exists()
    with pytest.raises(SignatureRefused):
        signing.verify(path.read_bytes(), manifest.read(path.parent)[1], foreign)
