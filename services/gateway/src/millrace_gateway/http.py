"""The REST application: routes, probes, and the edge around them."""

import asyncio
import logging
import os
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from millrace_gateway.edge import Edge, Limits
from millrace_gateway.rest import (
    batches,
    chat,
    completions,
    compressions,
    datasets,
    dead_letters,
    deployments,
    embeddings,
    errors,
    events,
    files,
    fine_tuning,
    fine_tuning_events,
    graders,
    inference,
    keys,
    mlflow_artifacts,
    mlflow_models,
    mlflow_runs,
    mlflow_versions,
    models,
    permissions,
    prompts,
    recalls,
    responses,
    rollouts,
    serving_tuning,
    tokenize,
    training,
    uploads,
    webhooks,
)
from millrace_gateway.rest.caller import Gateway
from millrace_gateway.rest.flat_errors import FlatErrors

LOG = logging.getLogger(__name__)

_NOUNS = (
    chat,
    completions,
    responses,
    embeddings,
    tokenize,
    models,
    files,
    uploads,
    batches,
    fine_tuning_events,
    fine_tuning,
    permissions,
    graders,
    prompts,
    datasets,
    training,
    compressions,
    deployments,
    serving_tuning,
    recalls,
    rollouts,
    events,
    dead_letters,
    webhooks,
    keys,
    inference,
    mlflow_models,
    mlflow_versions,
    mlflow_runs,
    mlflow_artifacts,
)
_DESCRIPTION = "The whole life of a language model. OpenAI clients work unchanged under /v1."


def create_app(gateway: Gateway, handlers: ASGIApp) -> ASGIApp:
    """The whole REST API: ``handlers`` with the edge around them."""
    limits = Limits(gateway.maximum_body_bytes, gateway.maximum_file_bytes)
    limiter = gateway.generator.limiter
    return FlatErrors(Edge(handlers, gateway.key_ring, limits, limiter, gateway.draining))


def create_handlers(gateway: Gateway) -> ASGIApp:
    """What answers, to whomever the scope's state names as ``principal``: nobody asks for keys."""
    app = FastAPI(
        title="Millrace",
        description=_DESCRIPTION,
        version=own_version(),
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        responses={"4XX": {"model": errors.ErrorResponse}, "5XX": {"model": errors.ErrorResponse}},
        redirect_slashes=False,
        # The edge traces and counts, refused requests too; FastAPI's own spans would double it.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.gateway = gateway
    errors.install(app)
    _add_probes(app)
    for noun in _NOUNS:
        app.include_router(noun.ROUTER)
    _require_keys_in_document(app)
    return app


def own_version() -> str:
    try:
        return version("millrace-gateway")
    except PackageNotFoundError:  # run from its sources
        return "0.0.0"


def _add_probes(app: FastAPI) -> None:
    """Kubernetes probes and metrics. Not ready while draining, or without a database."""

    @app.get("/livez", include_in_schema=False)
    async def livez() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", include_in_schema=False)
    async def readyz(request: Request) -> Response:
        gateway: Gateway = request.app.state.gateway
        if gateway.draining.is_set():
            return JSONResponse({"status": "draining"}, status_code=503)
        try:
            ready = await asyncio.to_thread(gateway.is_ready)
        except Exception as error:  # whatever the driver raises, the answer is the same
            LOG.warning("the database does not answer: %s", error)
            ready = False
        if not ready:
            return JSONResponse({"status": "database does not answer"}, status_code=503)
        return JSONResponse({"status": "ok", "pid": os.getpid()})

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        await asyncio.to_thread(request.app.state.gateway.measure)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _require_keys_in_document(app: FastAPI) -> None:
    """Say in the OpenAPI document what the edge does: every path needs a key."""

    def document() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer"}
            schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
