"""Keys' secrets."""

from millrace_gateway.domain import is_secret, new_secret, secret_digest


def test_a_new_secret_is_recognised() -> None:
    secret = new_secret()
    assert secret.startswith("sk-mr-")
    assert is_secret(secret)
    assert not is_secret(secret + "x")
    assert not is_secret("sk-" + "x" * 46)


def test_secrets_differ_and_digests_do_not_show_them() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert secret_digest(first) == secret_digest(first) != secret_digest(second)
    assert first not in secret_digest(first)
