"""Makes the key pair of a mesh where there is none, and signs what was there before.

    python -m millrace_runtime.signing_keys PRIVATE.pem TRUSTED_DIRECTORY [DATA_ROOT]

Whoever commits content is given the private key, whoever verifies it the directory of public ones.
To follow one key by another, remove the private one and start again: the old public key stays
trusted until its file is removed.
"""

import argparse
from pathlib import Path

from millrace_runtime import signing
from millrace_runtime.signing import Signer

_NAME_CHARACTERS = 16


def ensure(private: Path, trusted: Path, data: Path | None) -> int:
    """Have a private key, with its public key among the trusted ones.

    The private key is put in place last. Whoever is killed before that begins again, with another
    key, and what is signed again then is signed by that one.

    Args:
        data: content that was committed before there was a key lies below it; it is signed once.

    Returns:
        How many directories were signed.

    Raises:
        KeyFileInvalid: there is a file, and it is no key.
        OSError: the filesystem refused.
    """
    trusted.mkdir(parents=True, exist_ok=True)
    if private.exists():
        _trust(Signer.of(private), trusted)
        return 0
    key = signing.make_key()
    signer = Signer(key)
    _trust(signer, trusted)
    adopted = signing.adopt(data, signer) if data is not None and data.is_dir() else 0
    signing.write_private_key(key, private)
    return adopted


def _trust(signer: Signer, trusted: Path) -> None:
    path = trusted / f"{signing.hint_of(signer.public_key)[:_NAME_CHARACTERS]}.pem"
    if not path.exists():
        signing.write_public_key(signer.public_key, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m millrace_runtime.signing_keys",
        description="Make the key pair that signs a mesh's content, where there is none.",
    )
    parser.add_argument("private", type=Path, help="PEM file of the private key")
    parser.add_argument("trusted", type=Path, help="directory of public keys")
    parser.add_argument("data", type=Path, nargs="?", help="content to sign that is there already")
    told = parser.parse_args()
    print(f"signed {ensure(told.private, told.trusted, told.data)} directories")


if __name__ == "__main__":
    main()
