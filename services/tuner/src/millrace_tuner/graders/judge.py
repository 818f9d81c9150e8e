"""Asking a model for a verdict, over the OpenAI API of the gateway or of any other endpoint."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

_RETRIED = frozenset((408, 409, 429, 500, 502, 503, 504))
_LONGEST_WAIT_SECONDS = 8.0
_MOST_DETAILS = 500


@dataclass(frozen=True)
class Verdict:
    """What the judge said.

    Attributes:
        refusal: why it would not answer; empty when it did.
        tokens: of question and answer.
    """

    text: str
    refusal: str = ""
    tokens: int = 0


class JudgeFailed(Exception):
    """The judge gave no answer; says why."""


class Judge(Protocol):
    """Somebody who answers questions about samples."""

    def answer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        schema: Mapping[str, Any],
    ) -> Verdict:
        """
        Args:
            messages, sampling: as of a chat completion.
            schema: JSON Schema that the answer should follow, where the model can be held to it.

        Raises:
            JudgeFailed
        """
        ...


class HttpJudge:
    """A model behind ``POST {base_url}/chat/completions``. Safe to use from several threads.

    Args:
        base_url: with its ``/v1``, as OPENAI_BASE_URL.
        api_key: the key, or the file that holds it, read anew for every question.
        timeout_seconds: of one try.
        tries: in all, for answers and failures that may be other the next time.
        sleep: waits between two tries.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | Path,
        *,
        timeout_seconds: float = 60.0,
        tries: int = 3,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = httpx.Client(
            base_url=base_url.rstrip("/") + "/",
            timeout=timeout_seconds,
            transport=transport,
        )
        self._api_key = api_key
        self._tries = tries
        self._sleep = sleep
        self._without_schema: set[str] = set()

    def close(self) -> None:
        self._client.close()

    def answer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        schema: Mapping[str, Any],
    ) -> Verdict:
        body = {"model": model, "messages": messages, **sampling}
        if model in self._without_schema:
            return _verdict(self._post(body))
        shape = {"name": "grade", "strict": True, "schema": schema}
        wanted = {"type": "json_schema", "json_schema": shape}
        response = self._post({**body, "response_format": wanted})
        if _refuses_schema(response):
            # Some endpoints cannot hold a model to a schema: the prompt alone must do then.
            self._without_schema.add(model)
            response = self._post(body)
        return _verdict(response)

    def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        """
        Raises:
            JudgeFailed: nothing was answered in all tries, or there is no key.
        """
        key = self._key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        failure = ""
        for attempt in range(self._tries):
            last = attempt == self._tries - 1
            try:
                response = self._client.post("chat/completions", json=body, headers=headers)
            except httpx.HTTPError as error:
                failure = str(error) or type(error).__name__
                response = None
            if response is not None and (response.status_code not in _RETRIED or last):
                return response
            if not last:
                self._sleep(_wait_seconds(response, attempt))
        raise JudgeFailed(f"the judge cannot be reached: {failure}")

    def _key(self) -> str:
        if isinstance(self._api_key, str):
            return self._api_key
        try:
            return self._api_key.read_text().strip()
        except OSError as error:
            raise JudgeFailed(f"the key for the judge cannot be read: {error}") from None


def _wait_seconds(response: httpx.Response | None, attempt: int) -> float:
    """What the server asks for, or half a second, then twice as long each time; never in step."""
    asked = response.headers.get("retry-after", "") if response is not None else ""
    seconds = float(asked) if asked.isdigit() else 0.5 * 2**attempt
    return min(seconds, _LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.0)


def _refuses_schema(response: httpx.Response) -> bool:
    if response.status_code not in (400, 422):
        return False
    return "response_format" in response.text or "json_schema" in response.text


def _verdict(response: httpx.Response) -> Verdict:
    if response.is_error:
        raise JudgeFailed(f"the judge answered {response.status_code}: {_details(response)}")
    try:
        document = response.json()
        message = document["choices"][0]["message"]
        tokens = int((document.get("usage") or {}).get("total_tokens") or 0)
        return Verdict(message.get("content") or "", message.get("refusal") or "", tokens)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise JudgeFailed(
            f"the judge's answer is no chat completion: {_details(response)}"
        ) from None


def _details(response: httpx.Response) -> str:
    try:
        found = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        found = response.text
    return str(found)[:_MOST_DETAILS]
