"""``model:ckpt-step-N``: checkpoints by their step, through every endpoint that takes a model."""

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
import tritonclient.http as triton
from gateway_mesh import Mesh

from millrace_testkit.servers import wait_until

TUNED = "ft:demo:default::abc"
WAITING = {200: 3, 180: 4, 160: 5, 140: 6, 120: 7, 100: 8}
"""Step -> version of what is not loaded. Each test has its own, since a wish is told but once."""
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def training(mesh: Mesh) -> None:
    """Of ``demo``, step 400 serves as version 1."""
    routes = [mesh.route(), mesh.route(TUNED)]
    routes[0].steps.update({400: 1, **WAITING})
    routes[1].steps[10] = 1
    mesh.serve_routes(routes)


Ask = Callable[[openai.OpenAI, str], Any]
ENDPOINTS: dict[str, Ask] = {
    "chat": lambda client, model: client.chat.completions.with_raw_response.create(
        model=model, messages=HELLO
    ),
    "completions": lambda client, model: client.completions.with_raw_response.create(
        model=model, prompt="hello"
    ),
    "responses": lambda client, model: client.responses.with_raw_response.create(
        model=model, input="hello"
    ),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("model", "version"),
    [("demo:ckpt-step-400", "demo@1"), (f"{TUNED}:ckpt-step-10", f"{TUNED}@1")],
)
def test_a_loaded_checkpoint_answers_and_is_named(
    mesh: Mesh, endpoint: str, model: str, version: str
) -> None:
    answer = ENDPOINTS[endpoint](mesh.openai(), model)
    assert answer.headers["x-millrace-version"] == version
    assert mesh.triton.requests[-1]["version"] == "1"


@pytest.mark.parametrize(("endpoint", "step"), list(zip(ENDPOINTS, WAITING, strict=False)))
def test_one_that_is_not_loaded_is_asked_of_the_registry(
    mesh: Mesh, endpoint: str, step: int
) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ENDPOINTS[endpoint](mesh.openai(), f"demo:ckpt-step-{step}")
    assert caught.value.status_code == 503
    assert caught.value.code == "model_loading"
    assert caught.value.response.headers["retry-after"] == "1"
    wait_until(lambda: bool(mesh.registry.held), 5, "the registry is told")
    assert mesh.registry.held == [f"tenants/default/models/demo/versions/{WAITING[step]}"]


def test_it_answers_a_client_that_tries_again_once_it_is_loaded(mesh: Mesh) -> None:
    client = mesh.openai().with_options(max_retries=2)

    def load_when_told(request: httpx.Request) -> None:
        if request.headers.get("x-stainless-retry-count") == "1":
            wait_until(lambda: bool(mesh.registry.held), 5, "the registry is told")
            mesh.serve_routes([_loaded(mesh, 140)])

    client._client.event_hooks = {"request": [load_when_told]}
    answer = client.chat.completions.with_raw_response.create(
        model="demo:ckpt-step-140", messages=HELLO
    )
    assert answer.headers["x-millrace-version"] == "demo@6"


def _loaded(mesh: Mesh, step: int) -> Any:
    """Loaded, with no part of the traffic."""
    route = mesh.route()
    route.steps.update({400: 1, **WAITING})
    held = route.targets.add()
    held.CopyFrom(route.targets[0])
    held.version, held.share = WAITING[step], 0
    return route


def test_what_is_in_use_is_kept_loaded(mesh: Mesh) -> None:
    mesh.serve_routes([_loaded(mesh, 120)])
    mesh.openai().completions.create(model="demo:ckpt-step-120", prompt="hello")
    wait_until(lambda: bool(mesh.registry.held), 5, "the registry is told")
    assert mesh.triton.requests[-1]["version"] == "7"


def test_why_it_is_not_loaded_is_said(mesh: Mesh) -> None:
    reason = "3 checkpoints of model 'demo' are in use now"
    client = mesh.http()

    def message() -> str:
        body = {"model": "demo:ckpt-step-100", "prompt": "hello"}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 503
        return str(answer.json()["error"]["message"])

    mesh.registry.refused = reason
    wait_until(lambda: message() == reason, 5, "the refusal is known")
    # Each request after a refusal is told to the registry: only once it grants the last of them
    # does it hear no more in the tests that follow.
    mesh.registry.refused = ""
    wait_until(lambda: message() != reason, 5, "the refusal is taken back")


def test_a_step_that_is_none_is_told_which_there_are(mesh: Mesh) -> None:
    with pytest.raises(openai.NotFoundError, match="newest steps: 400, 200,") as caught:
        mesh.openai().completions.create(model="demo:ckpt-step-7", prompt="hello")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="served: demo"):
        mesh.openai().completions.create(model="nobody:ckpt-step-7", prompt="hello")
    with pytest.raises(openai.BadRequestError, match="not both") as both:
        mesh.openai().completions.create(model="demo:ckpt-step-400@1", prompt="hello")
    assert both.value.param == "model"
    assert mesh.registry.held == []


def test_models_are_listed_with_their_loaded_checkpoints(mesh: Mesh) -> None:
    client = mesh.openai()
    ids = [model.id for model in client.models.list()]
    assert ids == ["demo", "demo:ckpt-step-400", TUNED, f"{TUNED}:ckpt-step-10"]
    loaded: Any = client.models.retrieve("demo:ckpt-step-400").to_dict()
    assert (loaded["id"], loaded["object"]) == ("demo:ckpt-step-400", "model")
    assert [version["version"] for version in loaded["versions"]] == [1]
    waiting = client.models.retrieve("demo:ckpt-step-200").to_dict()
    assert waiting["versions"] == []
    assert client.models.retrieve("demo").to_dict()["checkpoint_steps"] == sorted({400, *WAITING})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("demo:ckpt-step-7")
    assert mesh.registry.held == []


def test_the_open_inference_protocol_takes_the_name_too(mesh: Mesh) -> None:
    headers = {"authorization": f"Bearer {mesh.member_secret}"}
    with triton.InferenceServerClient(mesh.url.removeprefix("http://")) as client:
        assert client.is_model_ready("demo:ckpt-step-400", headers=headers)
        assert not client.is_model_ready("demo:ckpt-step-7", headers=headers)
        assert not client.is_model_ready("demo:ckpt-step-400", "1", headers=headers)
