"""What clients ask for by step, until the registry was told."""

from millrace_gateway.wishes import RENEW_SECONDS, Wish, Wishes

SEVEN, EIGHT = Wish("acme", "demo", 7), Wish("acme", "demo", 8)


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_wish_is_told_once_and_again_after_a_while() -> None:
    clock = Clock()
    wishes = Wishes(clock)
    for wish in (SEVEN, EIGHT, SEVEN):
        wishes.add(wish)
    assert wishes.changed.is_set()
    assert wishes.take() == [SEVEN, EIGHT]
    assert not wishes.changed.is_set()
    wishes.add(SEVEN)
    assert wishes.take() == []
    clock.seconds += RENEW_SECONDS
    wishes.add(SEVEN)
    assert wishes.take() == [SEVEN]


def test_a_refusal_stands_until_the_registry_agrees() -> None:
    wishes = Wishes(Clock())
    wishes.add(SEVEN)
    wishes.take()
    wishes.refused(SEVEN, "too many")
    assert wishes.refusal(SEVEN) == "too many"
    assert wishes.refusal(EIGHT) == ""
    wishes.add(SEVEN)
    assert wishes.take() == [SEVEN]
    wishes.granted(SEVEN)
    assert wishes.refusal(SEVEN) == ""


def test_what_the_registry_did_not_hear_is_told_again() -> None:
    wishes = Wishes(Clock())
    wishes.add(SEVEN)
    wishes.take()
    wishes.unheard(SEVEN)
    wishes.add(SEVEN)
    assert wishes.take() == [SEVEN]


def test_a_wish_names_its_version() -> None:
    assert SEVEN.name == "tenants/acme/models/demo/versions/7"
