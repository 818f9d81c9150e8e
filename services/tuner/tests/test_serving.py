import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_tuner.domain import Failure, Outcome
from millrace_tuner.serving import (
    Scene,
    SeenCompression,
    SeenRollout,
    SeenVersion,
    outcome_of,
)

FINAL = "tenants/acme/jobs/ftjob-1/checkpoints/ckpt-2"
EARLIER = "tenants/acme/jobs/ftjob-1/checkpoints/ckpt-1"


def compression(name: str = "c1", state: str = "SUCCEEDED", **fields: object) -> SeenCompression:
    values = {
        "name": name,
        "checkpoint": FINAL,
        "state": state,
        "passed": state == "SUCCEEDED",
        "reasons": (),
        "failure": None,
        **fields,
    }
    return SeenCompression(**values)  # type: ignore[arg-type]


def version(state: str, number: int = 2, **fields: str) -> SeenVersion:
    values = {"compression": "c1", "checkpoint": FINAL, "reason": "", **fields}
    return SeenVersion(number=number, state=state, **values)


REJECTED = compression(passed=False, reasons=("perplexity grew by 9 %, at most 2 %",))
# The registry retires a version whose rollout it reverses.
REVERSED = Scene([compression()], [version("RETIRED")], [SeenRollout(2, "REVERSED", "errors")])
SUPERSEDED = SeenRollout(1, "SUPERSEDED", "a newer version came before its turn")
BOTH_TARGETS = (
    [compression(), compression("c2")],
    [
        version("REGISTERED", 1),
        version("ROLLING_OUT", compression="c2"),
    ],
)


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (Scene(), None),
        (Scene([compression(state="RUNNING")]), None),
        (Scene([compression()]), None),
        (Scene([compression()], [version("ROLLING_OUT")]), None),
        (Scene([compression()], [version("SERVING")]), ""),
        (Scene([compression()], [version("RETIRED")]), ""),
        (Scene([compression()], [version("REGISTERED")], [SeenRollout(2, "SETTLED", "")]), ""),
        (Scene([REJECTED]), "COMPRESSION_REJECTED"),
        (Scene([compression(state="FAILED")]), "COMPRESSION_FAILED"),
        (Scene([compression(state="CANCELLED")]), "COMPRESSION_CANCELLED"),
        (REVERSED, "ROLLOUT_REVERSED"),
        # Of two targets' versions, the later one takes the other's turn.
        (Scene(*BOTH_TARGETS, [SUPERSEDED, SeenRollout(2, "CANARY", "")]), None),
        (Scene(*BOTH_TARGETS, [SUPERSEDED, SeenRollout(2, "SETTLED", "")]), ""),
        (Scene(*BOTH_TARGETS, [SUPERSEDED, SeenRollout(2, "REVERSED", "")]), "ROLLOUT_REVERSED"),
        (Scene([compression()], [version("QUARANTINED")]), "VERSION_QUARANTINED"),
        # Another target may yet succeed, or has.
        (Scene([REJECTED, compression("c2", "RUNNING")]), None),
        (Scene([REJECTED, compression("c2")], [version("SERVING", compression="c2")]), ""),
        # What became of an earlier checkpoint says nothing of the final one.
        (Scene([compression(checkpoint=EARLIER)], [version("SERVING", checkpoint=EARLIER)]), None),
        (Scene([compression(checkpoint=EARLIER, state="FAILED")]), None),
    ],
)
def test_the_outcome_follows_from_what_is_seen(scene: Scene, expected: str | None) -> None:
    outcome = outcome_of(FINAL, scene)
    if expected is None:
        assert outcome is None
    else:
        assert outcome is not None
        assert (outcome.failure.reason if outcome.failure else "") == expected


def test_a_rejection_carries_the_measured_reasons() -> None:
    outcome = outcome_of(FINAL, Scene([REJECTED]))
    assert outcome is not None
    assert outcome.failure is not None
    assert "perplexity grew by 9 %, at most 2 %" in outcome.failure.message


def test_a_failed_compression_is_named() -> None:
    failed = compression(state="FAILED", failure=Failure("OUT_OF_MEMORY", "needs 9 GiB"))
    outcome = outcome_of(FINAL, Scene([failed]))
    assert outcome is not None
    assert outcome.failure is not None
    assert "OUT_OF_MEMORY: needs 9 GiB" in outcome.failure.message


STATES = st.sampled_from(["QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"])
COMPRESSIONS = st.lists(
    st.builds(compression, name=st.sampled_from(["c1", "c2"]), state=STATES, passed=st.booleans()),
    max_size=2,
    unique_by=lambda seen: seen.name,
)
VERSIONS = st.lists(
    st.builds(
        version,
        state=st.sampled_from(["REGISTERED", "ROLLING_OUT", "SERVING", "RETIRED", "QUARANTINED"]),
        number=st.sampled_from([1, 2]),
        compression=st.sampled_from(["c1", "c2"]),
    ),
    max_size=2,
    unique_by=(lambda seen: seen.number, lambda seen: seen.compression),
)
ROLLOUTS = st.lists(
    st.builds(
        SeenRollout,
        to_version=st.sampled_from([1, 2]),
        state=st.sampled_from(["PENDING", "CANARY", "SETTLED", "REVERSED", "SUPERSEDED"]),
        reason=st.just("why"),
    ),
    max_size=2,
    unique_by=lambda seen: seen.to_version,
)


@given(COMPRESSIONS, VERSIONS, ROLLOUTS)
def test_order_does_not_matter_and_serving_always_wins(
    compressions: list[SeenCompression], versions: list[SeenVersion], rollouts: list[SeenRollout]
) -> None:
    outcome = outcome_of(FINAL, Scene(compressions, versions, rollouts))
    turned = Scene(compressions[::-1], versions[::-1], rollouts[::-1])
    assert outcome_of(FINAL, turned) == outcome
    if any(seen.state == "SERVING" for seen in versions):
        assert outcome == Outcome()
    if any(seen.state in ("QUEUED", "RUNNING") for seen in compressions):
        assert outcome is None or outcome.failure is None
