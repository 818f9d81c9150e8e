"""Versions whose artifact, or what it was made of, is not signed as it must be."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from registry_builders import TARGET, World

from millrace.registry.v1 import events_pb2
from millrace_registry.domain import Content, VersionState
from millrace_registry.provenance import Provenance, provenance_of
from millrace_registry.settings import RegistrySettings
from millrace_runtime import manifest, signing
from millrace_runtime.database import Database, open_database
from millrace_runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME
from millrace_runtime.signing import INVALID, MISSING, UNTRUSTED, KeyFileInvalid, Signer, Trust
from millrace_testkit.clock import FakeClock

KEY = signing.make_key()
FOREIGN = Signer(signing.make_key())
TRUST = Trust([KEY.public_key()])
STAGES = ("datasets", "checkpoints", "artifacts")


class SignedWorld(World):
    """Three stages that sign what they commit, and a registry that asks for it."""

    def __init__(self, database: Database, folder: Path, *, accept_unsigned: bool = False) -> None:
        super().__init__(
            database,
            folder,
            FakeClock(),
            sign=Signer(KEY).sign,
            trust=TRUST,
            accept_unsigned=accept_unsigned,
        )

    def make(self, number: int, tuned: bool = False) -> None:
        """A dataset, the checkpoint that was made of it, and its artifact."""
        dataset = self.commit("datasets", number, {})
        checkpoint = self.commit("checkpoints", number, {"dataset_digest": dataset.digest})
        artifact = self.commit("artifacts", number, {"checkpoint_digest": checkpoint.digest})
        evaluation = checkpoint if tuned else dataset
        self._made = (artifact, checkpoint, evaluation)

    def commit(self, stage: str, number: int, metadata: Mapping[str, Any]) -> Content:
        target = self.path(stage, number)
        temporary = manifest.temporary_sibling(target)
        (temporary / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
        (temporary / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
        (temporary / "content.bin").write_text(f"{stage} {number}")
        digest = manifest.commit(temporary, target, stage.removesuffix("s"), metadata)
        return Content(self.content.publish(target), digest, 100)

    def path(self, stage: str, number: int) -> Path:
        return self.content.working_path(f"{stage}/{number}")

    def register(self, number: int) -> None:
        """The fact of the artifact comes."""
        artifact, checkpoint, evaluation = self._made
        self.app.artifact_finished(
            "acme",
            compression=f"tenants/acme/compressions/{number}",
            target=TARGET,
            artifact=artifact,
            checkpoint={
                "name": f"tenants/acme/runs/r/checkpoints/{number}",
                "model": "demo",
                "step": str(number),
                "content": {"uri": checkpoint.uri, "digest": checkpoint.digest},
                "evaluation": {"uri": evaluation.uri, "digest": evaluation.digest},
            },
            measurements={},
            base_model="",
            traceparent="",
        )

    def quarantine_reasons(self) -> list[str]:
        """As the facts give them."""
        return [fact.reason for fact in self.messages(events_pb2.VersionQuarantined)]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Nothing here differs by database."""
    opened = open_database(f"sqlite:///{tmp_path}/service.db")
    yield opened
    opened.close()


@pytest.fixture
def world(database: Database, tmp_path: Path) -> SignedWorld:
    return SignedWorld(database, tmp_path)


def _remove(directory: Path) -> None:
    (directory / SIGNATURE_NAME).unlink()


def _sign_by_another(directory: Path) -> None:
    FOREIGN.sign(directory)


def _flip(directory: Path) -> None:
    path = directory / SIGNATURE_NAME
    content = bytearray(path.read_bytes())
    content[content.index(b'"payload":"') + 40] ^= 1
    path.write_bytes(content)


def _of_another(directory: Path) -> None:
    other = directory.parent / "other"
    temporary = manifest.temporary_sibling(other)
    (temporary / "content.bin").write_text("another")
    manifest.commit(temporary, other, "artifact", {})
    Signer(KEY).sign(other)
    (directory / SIGNATURE_NAME).write_bytes((other / SIGNATURE_NAME).read_bytes())


BREAKS = (
    (_remove, MISSING),
    (_sign_by_another, UNTRUSTED),
    (_flip, INVALID),
    (_of_another, INVALID),
)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_version_whose_chain_is_signed_is_served(world: SignedWorld, tuned: bool) -> None:
    world.make(1, tuned)
    world.register(1)
    world.look(20)
    assert world.shares() == {1: 1.0}
    assert world.quarantine_reasons() == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("break_it", "reason"), BREAKS)
def test_a_link_that_is_not_signed_so_is_refused_at_registration(
    world: SignedWorld, stage: str, break_it: Callable[[Path], None], reason: str
) -> None:
    world.make(1)
    break_it(world.path(stage, 1))
    world.register(1)
    assert world.version(1).state == VersionState.QUARANTINED
    assert world.version(1).state_reason.startswith(f"{reason}: ")
    assert stage.removesuffix("s") in world.version(1).state_reason
    assert world.quarantine_reasons() == [world.version(1).state_reason]
    assert world.rollout_states() == []


@pytest.mark.parametrize(
    ("stage", "break_it", "reason"),
    [(stage, *broken) for stage, broken in zip(STAGES, BREAKS, strict=False)],
)
def test_a_link_that_was_changed_since_is_refused_at_the_rollout(
    world: SignedWorld, stage: str, break_it: Callable[[Path], None], reason: str
) -> None:
    world.make(1)
    world.register(1)
    world.look(20)
    world.make(2)
    world.register(2)
    break_it(world.path(stage, 2))
    world.look(6)
    assert world.version(2).state == VersionState.QUARANTINED
    assert world.quarantine_reasons() == [world.version(2).state_reason]
    assert world.version(2).state_reason.startswith(f"{reason}: ")
    assert world.shares() == {1: 1.0}
    assert world.rollout_states() == ["SETTLED", "REVERSED"]


def test_a_serving_version_is_verified_when_triton_loads_it_again(world: SignedWorld) -> None:
    world.make(1)
    world.register(1)
    world.look(20)
    _sign_by_another(world.path("artifacts", 1))
    world.look(6)
    assert world.shares() == {1: 1.0}, "what is loaded is not read again"
    world.triton.restart()
    world.look(6)
    assert world.shares() == {}
    assert world.quarantine_reasons()[0].startswith(UNTRUSTED)


def test_an_artifact_that_was_made_anew_with_its_manifest_is_damaged(world: SignedWorld) -> None:
    world.make(1)
    manifest.remove_tree(world.path("artifacts", 1))
    world.commit("artifacts", 1, {"checkpoint_digest": "sha256:" + "0" * 64})
    world.register(1)
    assert world.version(1).state_reason.startswith("its artifact is damaged")


def test_a_signature_that_names_another_parent_is_refused(world: SignedWorld) -> None:
    world.make(1)
    artifact, _, evaluation = world._made
    world.make(2)
    world._made = (artifact, world._made[1], evaluation)
    world.register(1)
    assert world.version(1).state_reason.startswith(f"{INVALID}: the signature of its artifact")


@pytest.mark.parametrize("stage", STAGES[:2])
def test_a_manifest_of_an_ancestor_with_one_flipped_byte_is_refused(
    world: SignedWorld, stage: str
) -> None:
    world.make(1)
    path = world.path(stage, 1) / MANIFEST_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    world.register(1)
    assert world.version(1).state_reason.startswith(f"{INVALID}: the manifest of its ")


def test_an_ancestor_that_is_not_there_any_more_is_passed_over(world: SignedWorld) -> None:
    world.make(1)
    for stage in STAGES[:2]:
        manifest.remove_tree(world.path(stage, 1))
    world.register(1)
    assert world.version(1).state == VersionState.REGISTERED


@pytest.mark.parametrize(("break_it", "reason"), [(_remove, ""), *BREAKS[1:]])
def test_unsigned_content_is_taken_where_that_is_set_and_a_wrong_signature_is_not(
    database: Database, tmp_path: Path, break_it: Callable[[Path], None], reason: str
) -> None:
    world = SignedWorld(database, tmp_path, accept_unsigned=True)
    world.make(1)
    for stage in STAGES:
        break_it(world.path(stage, 1))
    world.register(1)
    refused = world.version(1).state_reason
    assert refused.startswith(f"{reason}: ") if reason else refused == ""


def test_a_version_from_before_there_were_signatures_goes_on_serving(
    world: SignedWorld, tmp_path: Path
) -> None:
    world.make(1)
    world.register(1)
    world.look(20)
    for stage in STAGES:
        _remove(world.path(stage, 1))
    assert signing.adopt(tmp_path / "data", Signer(KEY)) == len(STAGES)
    world.triton.restart()
    world.look(6)
    assert world.shares() == {1: 1.0}
    assert world.quarantine_reasons() == []


def test_the_settings_say_whose_signatures_count(world: SignedWorld, tmp_path: Path) -> None:
    world.make(1)
    world.register(1)
    version = world.version(1)
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    with pytest.raises(KeyFileInvalid):
        provenance_of(RegistrySettings(trusted_keys=trusted), world.content)
    signing.write_public_key(KEY.public_key(), trusted / "mesh.pem")
    provenance = provenance_of(RegistrySettings(trusted_keys=trusted), world.content)
    _remove(world.path("artifacts", 1))
    with pytest.raises(signing.SignatureRefused):
        provenance.artifact(version)
    lenient = RegistrySettings(trusted_keys=trusted, signatures="accept_unsigned")
    assert provenance_of(lenient, world.content).artifact(version) == world.path("artifacts", 1)
    asked_for_nothing = provenance_of(RegistrySettings(), world.content)
    assert asked_for_nothing.artifact(version) == Provenance(world.content).artifact(version)
