"""Ids of tuned models that nobody else has."""

import secrets

from millrace_runtime.errors import InvalidArgument
from millrace_tuner import domain

_UNIQUE_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_UNIQUE_LENGTH = 8
_LONGEST = 256


def new_model_id(plan: domain.Plan, tenant: str) -> str:
    """What a recovery makes becomes no version; the compressor knows it by its beginning.

    Raises:
        InvalidArgument: the id would be longer than a model's may be.
    """
    unique = "".join(secrets.choice(_UNIQUE_ALPHABET) for _ in range(_UNIQUE_LENGTH))
    if plan.is_recovery:
        return f"recovery:{unique}"
    id = domain.tuned_model_id(plan.base.model, tenant, plan.suffix, unique)
    if len(id) > _LONGEST:
        raise InvalidArgument(
            f"the tuned model's id would have {len(id)} characters, at most {_LONGEST} "
            "are allowed; choose a shorter suffix",
            field="suffix",
        )
    return id
