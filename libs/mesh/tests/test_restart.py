from millrace_mesh.restart import LONGEST_DELAY_SECONDS, STABLE_SECONDS, Backoff


def delays(lives_seconds: list[float], was_ready: bool = False) -> list[float]:
    backoff, result = Backoff(), []
    for lived in lives_seconds:
        backoff, delay = backoff.after_end(lived, was_ready)
        result.append(delay)
    return result


def test_the_delay_doubles_up_to_a_bound():
    assert delays([0] * 9) == [0.25, 0.5, 1, 2, 4, 8, 15, 15, 15]
    assert max(delays([0] * 50)) == LONGEST_DELAY_SECONDS


def test_a_stable_life_is_forgiveness():
    assert delays([0, 0, 0, STABLE_SECONDS, 0]) == [0.25, 0.5, 1, 0.25, 0.5]


def test_who_was_ready_is_not_kept_waiting_for_long():
    assert delays([5] * 5, was_ready=True) == [0.25, 0.5, 1, 1, 1]
