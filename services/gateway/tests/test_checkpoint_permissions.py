"""Checkpoints that other projects may ask: ``fine_tuning.checkpoints.permissions``."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import openai
import pytest
from gateway_mesh import Mesh

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_gateway.__main__ import MIGRATIONS
from millrace_gateway.domain import Principal, Role
from millrace_gateway.permissions import Page, Permissions, PermissionTable, Shared
from millrace_gateway.route import Route, RouteTable, Target
from millrace_gateway.store import CHECKPOINT_PERMISSIONS
from millrace_gateway.wishes import Wish
from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import NotFound, Unavailable

TUNED = "ft:demo:default:docs:k3x9ab"
STEP = f"{TUNED}:ckpt-step-5"
OPERATOR = Principal("default", "key-1", Role.OPERATOR)
SHARED = Shared("default", TUNED)


@pytest.fixture
def tuned(mesh: Mesh) -> Iterator[Mesh]:
    """A tuned model is served, with a checkpoint; nobody else may use it."""
    route = mesh.route(TUNED)
    route.steps[5] = 1
    mesh.serve_routes([mesh.route(), route])
    for reference in (TUNED, STEP):
        name = f"tenants/default/models/{reference}/versions/1"
        made_of = compressor_pb2.CheckpointReference(name="tenants/default/jobs/j/checkpoints/c")
        mesh.registry.versions[name] = registry_pb2.Version(name=name, checkpoint=made_of)
    yield mesh
    with mesh.database.transaction() as connection:
        connection.execute(CHECKPOINT_PERMISSIONS.delete())


def permissions_of(client: openai.OpenAI) -> Any:
    return client.fine_tuning.checkpoints.permissions


def ask(mesh: Mesh, model: str) -> str | None:
    answer = mesh.openai(mesh.other_secret).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "x"}]
    )
    return answer.choices[0].message.content


def test_a_project_may_ask_what_is_shared_with_it_until_it_is_not(tuned: Mesh) -> None:
    permissions = permissions_of(tuned.openai(tuned.operator_secret))
    other = tuned.openai(tuned.other_secret)
    with pytest.raises(openai.NotFoundError):
        ask(tuned, TUNED)
    (given,) = permissions.create(TUNED, project_ids=["acme"]).data
    assert (given.object, given.project_id) == ("checkpoint.permission", "acme")
    assert ask(tuned, TUNED) == "Hello 🙂"
    assert other.completions.create(model=TUNED, prompt="x").choices[0].text == "Hello 🙂"
    assert other.models.retrieve(TUNED).owned_by == "default"
    assert [model.id for model in other.models.list()] == [TUNED]
    for model in (STEP, f"{TUNED}@1", "demo"):
        with pytest.raises(openai.NotFoundError):
            ask(tuned, model)
    assert permissions.delete(given.id, fine_tuned_model_checkpoint=TUNED).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        ask(tuned, TUNED)
    assert caught.value.code == "model_not_found"
    assert list(other.models.list()) == []
    with pytest.raises(openai.NotFoundError):
        permissions.delete(given.id, fine_tuned_model_checkpoint=TUNED)


def test_a_checkpoint_is_shared_without_its_model(tuned: Mesh) -> None:
    permissions = permissions_of(tuned.openai(tuned.operator_secret))
    permissions.create(STEP, project_ids=["acme"])
    assert ask(tuned, STEP) == "Hello 🙂"
    assert tuned.openai(tuned.other_secret).models.retrieve(STEP).id == STEP
    with pytest.raises(openai.NotFoundError):
        ask(tuned, TUNED)


def test_who_shares_does_not_give_away_the_model(tuned: Mesh) -> None:
    permissions_of(tuned.openai(tuned.operator_secret)).create(TUNED, project_ids=["acme"])
    other = tuned.openai(tuned.other_secret)
    shown = other.models.retrieve(TUNED).model_dump()
    assert (shown["aliases"], shown["checkpoint_steps"]) == ({}, [])
    tuned.registry.deleted.clear()
    with pytest.raises(openai.NotFoundError):
        other.models.delete(TUNED)
    assert tuned.registry.deleted == []


def test_permissions_in_pages(tuned: Mesh) -> None:
    client = tuned.openai(tuned.operator_secret)
    permissions = permissions_of(client)
    for project in ("blue", "green"):
        client.post("/keys", body={"tenant": project}, cast_to=object)
    made = permissions.create(TUNED, project_ids=["acme", "blue", "green"]).data
    again = permissions.create(TUNED, project_ids=["green", "acme"]).data
    assert [one.id for one in again] == [made[2].id, made[0].id]
    newest_first = sorted((one.id for one in made), reverse=True)
    page = permissions.list(TUNED, limit=2)
    assert [one.id for one in page.data] == newest_first[:2]
    assert page.has_more
    assert [one.id for one in page] == newest_first
    ascending = permissions.list(TUNED, order="ascending", after=newest_first[-1])
    assert [one.id for one in ascending] == newest_first[1::-1]
    (of_one,) = permissions.list(TUNED, project_id="blue")
    assert of_one.id == made[1].id
    with pytest.warns(DeprecationWarning, match="list method"):
        retrieved = permissions.retrieve(TUNED, limit=1, order="descending")
    assert [one.id for one in retrieved.data] == newest_first[:1]
    assert retrieved.has_more


@pytest.mark.parametrize("reference", ["ft:demo:default:docs:none", "demo", "ft:x", f"{TUNED}@1"])
def test_there_is_no_such_checkpoint(tuned: Mesh, reference: str) -> None:
    permissions = permissions_of(tuned.openai(tuned.operator_secret))
    with pytest.raises(openai.NotFoundError):
        permissions.create(reference, project_ids=["acme"])
    with pytest.raises(openai.NotFoundError):
        list(permissions.list(reference))


@pytest.mark.parametrize(
    ("projects", "param", "code"),
    [
        (["acme", "nobody"], "project_ids[1]", "project_not_found"),
        (["default"], "project_ids[0]", "invalid_argument"),
        (["No Name"], "project_ids[0]", "invalid_value"),
        ([], "project_ids", "invalid_value"),
    ],
)
def test_whom_it_cannot_be_shared_with(
    tuned: Mesh, projects: list[str], param: str, code: str
) -> None:
    permissions = permissions_of(tuned.openai(tuned.operator_secret))
    with pytest.raises(openai.BadRequestError) as caught:
        permissions.create(TUNED, project_ids=projects)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert list(permissions.list(TUNED)) == []


def test_only_an_operator_shares(tuned: Mesh) -> None:
    permissions = permissions_of(tuned.openai())
    for attempt in (
        lambda: permissions.create(TUNED, project_ids=["acme"]),
        lambda: permissions.list(TUNED),
        lambda: permissions.delete("cp-1", fine_tuned_model_checkpoint=TUNED),
    ):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            attempt()
        assert caught.value.code == "operator_key_required"


def test_a_deleted_model_is_shared_no_more(tuned: Mesh) -> None:
    client = tuned.openai(tuned.operator_secret)
    permissions_of(client).create(TUNED, project_ids=["acme"])
    permissions_of(client).create(STEP, project_ids=["acme"])
    tuned.registry.models.add(TUNED)
    assert client.models.delete(TUNED).deleted
    with tuned.database.transaction() as connection:
        assert connection.execute(CHECKPOINT_PERMISSIONS.select()).all() == []


@pytest.fixture
def table(database: Database) -> PermissionTable:
    migrate(database, MIGRATIONS)
    return PermissionTable(database)


def test_rows(table: PermissionTable) -> None:
    first = table.add(SHARED, ["acme", "blue"])
    assert [one.project for one in first] == ["acme", "blue"]
    assert table.add(SHARED, ["blue"]) == [first[1]]
    step = table.add(Shared("default", STEP), ["acme"])
    table.add(Shared("default", f"{TUNED}x"), ["acme"])
    assert table.all()[("acme", STEP)] == "default"
    assert table.page(Shared("acme", TUNED), Page(5)) == []
    assert not table.remove(SHARED, step[0].id)
    assert table.remove(SHARED, first[0].id)
    assert not table.remove(SHARED, first[0].id)
    assert table.remove_model("default", TUNED)
    assert not table.remove_model("default", TUNED)
    assert table.all() == {("acme", f"{TUNED}x"): "default"}


def test_a_wish_for_a_shared_checkpoint_is_its_owners() -> None:
    routes = RouteTable()
    target = Target(1, 1.0, ("a:1",))
    routes.replace(1, [Route("default", TUNED, "t", (target,), steps={5: 7})])
    routes.share({("acme", STEP): "default", ("acme", "gone"): "default"})
    with pytest.raises(Unavailable):
        routes.find("acme", STEP)
    assert routes.wishes.take() == [Wish("default", TUNED, 7)]
    with pytest.raises(NotFound):
        routes.find("acme", "gone")
    with pytest.raises(NotFound):
        routes.find("blue", STEP)


def test_a_tenants_own_model_goes_before_anothers() -> None:
    routes = RouteTable()
    target = Target(1, 1.0, ("a:1",))
    routes.replace(1, [Route(tenant, TUNED, tenant, (target,)) for tenant in ("acme", "default")])
    routes.share({("acme", TUNED): "default"})
    assert routes.named("acme", TUNED).route.tenant == "acme"


class SlowRows(PermissionTable):
    """The first look reads what is there, and says it when it is let."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.first: Mapping[tuple[str, str], str] | None = None
        self.wait: Callable[[], Any] = lambda: None

    def all(self) -> Mapping[tuple[str, str], str]:
        found = super().all()
        if self.first is None:
            self.first = found
            self.wait()
        return found


def test_an_old_look_does_not_undo_a_revocation(database: Database) -> None:
    migrate(database, MIGRATIONS)

    async def scenario() -> None:
        rows = SlowRows(database)
        (given,) = rows.add(SHARED, ["acme"])
        read, let = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            loop.call_soon_threadsafe(read.set)
            asyncio.run_coroutine_threadsafe(let.wait(), loop).result(10)

        rows.wait = wait
        held: list[Mapping[tuple[str, str], str]] = []
        permissions = Permissions(rows)
        looking = asyncio.ensure_future(permissions.begin(held.append))
        await read.wait()
        revoking = asyncio.ensure_future(permissions.take_back(OPERATOR, SHARED, given.id))
        await asyncio.sleep(0)
        let.set()
        await asyncio.gather(looking, revoking)
        assert held[-1] == {}

    asyncio.run(scenario())
