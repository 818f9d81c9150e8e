"""A thin client of the gateway: one object, one ``Collection`` a noun, JSON objects in and out.

What OpenAI's API has (files, chat, fine-tuning) is also reached with the ``openai`` package;
this client is for what it lacks, and for ``millrace`` itself.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import httpx

from millrace_client import errors, sse
from millrace_client.endpoint import Endpoint

Json: TypeAlias = dict[str, Any]
JsonList: TypeAlias = list[Json]
REQUEST_ID_HEADER = "Idempotency-Key"
_TIMEOUT_SECONDS = 60.0
_STREAM_TIMEOUT = httpx.Timeout(_TIMEOUT_SECONDS, read=None)
# Four heartbeats: a connection that died without a word is given up.
_HEARTBEAT_TIMEOUT = httpx.Timeout(_TIMEOUT_SECONDS)
_RECONNECT_SECONDS = 1.0
_PAGE = 100


class Collection:
    """The resources below one path of the API."""

    def __init__(self, api: "Millrace", path: str) -> None:
        self._api = api
        self._path = path

    def create(self, body: Json, *, request_id: str = "") -> Json:
        """Make one. Sent again with the same ``request_id``, it answers what was made then."""
        headers = {REQUEST_ID_HEADER: request_id} if request_id else {}
        return self._api.request("POST", self._path, json=body, headers=headers)

    def get(self, identifier: str) -> Json:
        return self._api.request("GET", f"{self._path}/{identifier}")

    def update(self, identifier: str, body: Json) -> Json:
        return self._api.request("PATCH", f"{self._path}/{identifier}", json=body)

    def delete(self, identifier: str) -> Json:
        return self._api.request("DELETE", f"{self._path}/{identifier}")

    def act(self, identifier: str, verb: str, body: Json | None = None) -> Json:
        """A custom method, such as ``cancel``."""
        return self._api.request("POST", f"{self._path}/{identifier}/{verb}", json=body or {})

    def list(self, limit: int | None = None, **filters: str) -> JsonList:
        """Up to ``limit``, in the API's order (newest first); ``None``: all."""
        return self._api.list(self._path, limit, filters)

    def children(self, identifier: str, what: str, limit: int | None = None) -> JsonList:
        """What belongs to one of them, such as its checkpoints."""
        return self._api.list(f"{self._path}/{identifier}/{what}", limit, {})


class Millrace:
    """One gateway.

    Every method raises ``errors.ApiError`` when the gateway refuses, ``errors.NoGateway`` when
    it does not answer. ``on_request`` sees every request before it is sent and may add headers,
    such as a traceparent; ``transport`` is for tests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        on_request: Callable[[httpx.Request], None] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._http = httpx.Client(
            base_url=endpoint.base_url,
            headers={"authorization": f"Bearer {endpoint.api_key}"},
            event_hooks={"request": [on_request] if on_request else []},
            timeout=_TIMEOUT_SECONDS,
            transport=transport,
        )
        self.files = Collection(self, "/v1/files")
        self.uploads = Collection(self, "/v1/uploads")
        self.models = Collection(self, "/v1/models")
        self.datasets = Collection(self, "/v1/datasets")
        self.runs = Collection(self, "/v1/training/runs")
        self.tuning_jobs = Collection(self, "/v1/fine_tuning/jobs")
        self.compressions = Collection(self, "/v1/compressions")
        self.versions = Collection(self, "/v1/versions")
        self.deployments = Collection(self, "/v1/deployments")
        self.rollouts = Collection(self, "/v1/rollouts")
        self.serving_tunings = Collection(self, "/v1/serving_tunings")
        self.dead_letters = Collection(self, "/v1/dead_letters")
        self.keys = Collection(self, "/v1/keys")
        self.batches = Collection(self, "/v1/batches")
        self.webhooks = Collection(self, "/v1/webhook_endpoints")
        self.prompts = Collection(self, "/v1/prompts")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Millrace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, method: str, path: str, **options: Any) -> Json:
        """One call, and the JSON object that answers it."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise errors.from_response(response)
        answer: Json = response.json()
        return answer

    def list(self, path: str, limit: int | None, filters: Mapping[str, str]) -> JsonList:
        """The items of a list, page after page."""
        items: JsonList = []
        while limit is None or len(items) < limit:
            size = _PAGE if limit is None else min(_PAGE, limit - len(items))
            parameters: dict[str, str | int] = {**filters, "limit": size}
            if items:
                parameters["after"] = items[-1]["id"]
            page = self.request("GET", path, params=parameters)
            items += page["data"]
            if not page.get("has_more") or not page["data"]:
                break
        return items

    def lineage(self, identifier: str) -> Json:
        """What a resource or a digest came from and led to."""
        return self.request("GET", f"/v1/lineage/{identifier}")

    def card(self, model: str) -> str:
        """A model's card, Markdown with YAML before it."""
        with self._stream("GET", f"/v1/models/{model}/card") as response:
            return response.read().decode()

    def compression_plot(self, compression: str, of: str) -> bytes:
        """What was measured of a compression and of its like, as SVG."""
        path = f"/v1/compressions/{compression}/report.svg"
        with self._stream("GET", path, params={"of": of}) as response:
            return response.read()

    def download(self, file_id: str, target: IO[bytes]) -> None:
        """Copy a file's bytes to ``target``, which has a part of them when this raises."""
        with self._stream("GET", f"/v1/files/{file_id}/content") as response:
            for chunk in response.iter_bytes():
                target.write(chunk)

    def first_lines(self, file_id: str, count: int) -> JsonList:
        """The first ``count`` lines of a JSONL file; the rest of it is not read."""
        with self._stream("GET", f"/v1/files/{file_id}/content") as response:
            return [json.loads(line) for line in itertools.islice(response.iter_lines(), count)]

    def stream_job(self, job: str, *, after: str = "") -> Iterator[Json]:
        """A fine-tuning job whenever it changes, and its events, from ``after``'s on.

        It ends with the job, or with the gateway.

        Raises:
            NotStreamed: the gateway is older than its streams of jobs.
        """
        path = f"/v1/fine_tuning/jobs/{job}/events"
        options = {
            "params": {"stream": "true", "progress": "true"},
            "headers": {"Last-Event-ID": after} if after else {},
        }
        with self._stream("GET", path, timeout=_HEARTBEAT_TIMEOUT, **options) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise errors.NotStreamed(f"{self.endpoint.base_url} cannot stream a job's events")
            for event in sse.parse(response.iter_lines()):
                if event.data == "[DONE]":
                    return
                document: Json = json.loads(event.data)
                if event.event == "error":
                    raise errors.ServerError(document["error"]["message"], response.status_code)
                yield document

    def serving_tuning_plot(self, tuning: str) -> bytes:
        """The trials of a search for settings, as SVG."""
        with self._stream("GET", f"/v1/serving_tunings/{tuning}/report.svg") as response:
            return response.read()

    def stream_chat(self, body: Json) -> Iterator[Json]:
        """The chunks of a streamed chat completion."""
        return self._stream_completion("/v1/chat/completions", body)

    def stream_text(self, body: Json) -> Iterator[Json]:
        """The chunks of a streamed text completion."""
        return self._stream_completion("/v1/completions", body)

    def events(
        self, *, follow: bool, filters: Mapping[str, str] | None = None, after: str = ""
    ) -> Iterator[Json]:
        """The facts of the lifecycle, oldest first, as CloudEvents.

        ``filters``: ``stage`` and ``fact``, each one or several words with commas. With
        ``follow`` it goes on for ever, over broken connections and gateways that are away for
        a while, without a gap; without, it ends with the newest.
        """
        while True:
            try:
                for event in self._events_once(follow, filters or {}, after):
                    after = event["id"]
                    yield event
            except (errors.NoGateway, errors.ServerError):
                if not follow:
                    raise
            if not follow:
                return
            time.sleep(_RECONNECT_SECONDS)

    def _events_once(self, follow: bool, filters: Mapping[str, str], after: str) -> Iterator[Json]:
        headers = {"Last-Event-ID": after} if after else {}
        parameters = {**filters, "follow": "true" if follow else "false"}
        with self._stream("GET", "/v1/events", params=parameters, headers=headers) as response:
            for event in sse.parse(response.iter_lines()):
                document: Json = json.loads(event.data)
                if event.event == "error":
                    raise errors.ServerError(document["error"]["message"], response.status_code)
                yield document

    def _stream_completion(self, path: str, body: Json) -> Iterator[Json]:
        with self._stream("POST", path, json={**body, "stream": True}) as response:
            for event in sse.parse(response.iter_lines()):
                if event.data == "[DONE]":
                    return
                chunk: Json = json.loads(event.data)
                if "error" in chunk:
                    raise errors.ServerError(chunk["error"]["message"], response.status_code)
                yield chunk

    @contextmanager
    def _stream(
        self, method: str, path: str, timeout: httpx.Timeout = _STREAM_TIMEOUT, **options: Any
    ) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, path, timeout=timeout, **options) as response:
                if response.is_error:
                    response.read()
                    raise errors.from_response(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> errors.NoGateway:
        reason = str(error) or type(error).__name__
        return errors.NoGateway(
            f"no answer from {self.endpoint.base_url} ({reason}). Is the mesh up? millrace status"
        )
