"""Graders for the API: one sample at a time, so many at once, nothing kept."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from millrace_runtime.errors import FailedPrecondition, Unavailable
from millrace_tuner.graders import parsing
from millrace_tuner.graders.grader import Grader
from millrace_tuner.graders.grades import Grade, Sample
from millrace_tuner.graders.judge import Judge
from millrace_tuner.graders.sandbox import Limits, SandboxFailed, check_source
from millrace_tuner.graders.specification import PythonCode, Specification, asks_judge, singles

_PATIENCE_SECONDS = 5.0
_JUDGE_MISSING = (
    "this mesh has no judge for graders that ask a model; its operator sets "
    "MILLRACE_TUNER_JUDGE_BASE_URL (and MILLRACE_TUNER_JUDGE_API_KEY) to an endpoint with "
    "OpenAI's API, such as the mesh's own gateway"
)


class GraderRuns:
    """Validates and runs graders.

    Args:
        judge: who is asked by model graders; None: such graders are refused.
        judge_tenant: whose graders may ask; None: everybody's.
        limits: of Python graders.
        concurrency: graders that run at the same time; more wait for a few seconds.
    """

    def __init__(
        self,
        judge: Judge | None,
        limits: Limits = Limits(),
        concurrency: int = 4,
        judge_tenant: str | None = None,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._judge = judge
        self._limits = limits
        self._judge_tenant = judge_tenant
        self._places = threading.BoundedSemaphore(concurrency)
        self._patience_seconds = patience_seconds

    def validate(self, document: Any) -> None:
        """Whether a grader can be used.

        Raises:
            InvalidArgument: naming the field at fault.
            Unavailable: too many graders run; or Python cannot be run here.
        """
        specification = parsing.parse(document)
        with self._place():
            self._check_sources(specification, document)

    def run(self, tenant: str, document: Any, sample: Sample, item: Any) -> Grade:
        """
        Raises:
            InvalidArgument: naming the field at fault.
            FailedPrecondition: JUDGE_NOT_CONFIGURED, JUDGE_OF_ANOTHER_TENANT.
            Unavailable: too many graders run.
        """
        specification = parsing.parse(document)
        values = parsing.check_values(item)
        if asks_judge(specification):
            self._require_judge(tenant)
        with (
            self._place(),
            Grader(specification, judge=self._judge, limits=self._limits) as grader,
        ):
            return grader.grade([sample], values)[0]

    def _require_judge(self, tenant: str) -> None:
        if self._judge is None:
            raise FailedPrecondition(_JUDGE_MISSING, reason="JUDGE_NOT_CONFIGURED")
        if self._judge_tenant not in (None, tenant):
            raise FailedPrecondition(
                "this mesh's judge asks with the key of another tenant; its operator sets "
                "MILLRACE_TUNER_JUDGE_API_KEY, and MILLRACE_TUNER_JUDGE_TENANT, to allow yours",
                reason="JUDGE_OF_ANOTHER_TENANT",
            )

    def _check_sources(self, specification: Specification, document: Mapping[str, Any]) -> None:
        for grader in singles(specification):
            if isinstance(grader, PythonCode):
                try:
                    check_source(grader.source, _source_field(document, grader), self._limits)
                except SandboxFailed as error:
                    raise Unavailable(
                        f"Python graders cannot be run here: {error}", reason=error.kind.upper()
                    ) from error

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(timeout=self._patience_seconds):
            raise Unavailable("too many graders run now; try again soon", reason="GRADERS_BUSY")
        try:
            yield
        finally:
            self._places.release()


def _source_field(document: Mapping[str, Any], grader: PythonCode) -> str:
    """Where in the request the source is."""
    inner = document.get("graders")
    if not isinstance(inner, Mapping):
        return "grader.source"
    for name, each in inner.items():
        if isinstance(each, Mapping) and each.get("source") == grader.source:
            return f"grader.graders.{name}.source"
    return "grader.graders.source"
