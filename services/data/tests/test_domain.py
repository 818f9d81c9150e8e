import pytest

from millrace_data.domain import MAXIMUM_ATTEMPTS, Failure, WorkState, may_retry


@pytest.mark.parametrize("reason", ["CRASHED", "INTERNAL"])
def test_what_is_not_the_users_fault_is_tried_three_times(reason: str) -> None:
    failure = Failure(reason, "")
    tried = [attempts for attempts in range(1, 6) if may_retry(failure, attempts)]
    assert tried == list(range(1, MAXIMUM_ATTEMPTS))


def test_a_users_mistake_is_not_tried_again() -> None:
    assert not may_retry(Failure("DATASET_TOO_SMALL", ""), 1)


def test_final_states() -> None:
    assert [state for state in WorkState if not state.is_final] == ["QUEUED", "RUNNING"]
