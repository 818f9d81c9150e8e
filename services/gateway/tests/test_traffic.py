"""What is remembered of requests: sizes and times, bounded, of each model its own."""

from hypothesis import given
from hypothesis import strategies as st

from millrace_gateway.traffic import RecentTraffic

SIZES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=60)


@given(SIZES)
def test_whole_answers_are_remembered_in_their_order(sizes: list[tuple[int, int]]) -> None:
    traffic = RecentTraffic(now=iter(range(1000)).__next__)
    for prompt, answer in sizes:
        traffic.add("acme", "demo", prompt, answer)
    seen = traffic.of("acme", "demo")
    kept = [(one.prompt_tokens, one.answer_tokens) for one in seen.requests]
    assert kept == [size for size in sizes if min(size) > 0]
    assert seen.is_enough == (len(kept) >= 20)
    assert seen.requests_per_second == (1.0 if len(kept) > 1 else 0.0)


def test_it_is_bounded_and_keeps_the_newest() -> None:
    traffic = RecentTraffic(now=lambda: 1.0)
    for number in range(1, 1101):
        traffic.add("acme", "demo", number, 1)
    seen = traffic.of("acme", "demo").requests
    assert (len(seen), seen[0].prompt_tokens, seen[-1].prompt_tokens) == (1024, 77, 1100)


def test_models_and_tenants_are_apart_and_the_longest_unused_is_forgotten() -> None:
    traffic = RecentTraffic(now=lambda: 1.0)
    traffic.add("acme", "demo", 5, 5)
    traffic.add("other", "demo", 6, 6)
    for number in range(255):
        traffic.add("acme", f"model-{number}", 1, 1)
    assert not traffic.of("acme", "demo").requests
    assert traffic.of("other", "demo").requests[0].prompt_tokens == 6
