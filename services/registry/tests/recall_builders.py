"""What tests of recalls start from: versions, and what they learnt from."""

from registry_builders import World

from millrace.topology import fact_of
from millrace_registry.domain import Deployment, LineageEdge, LineageNode, RequestKey
from millrace_registry.events import subscriptions
from millrace_registry.recall import Action, Cause, Outcome, Recall, Sought
from millrace_registry.strategies import Immediate
from millrace_runtime import names
from millrace_runtime.cloudevent import Event

ACME = "tenants/acme"
BAD, GOOD = f"{ACME}/datasets/bad", f"{ACME}/datasets/good"
FILE = f"{ACME}/files/f"
DIGEST = "sha256:" + "d" * 64
LOOKS = 5
NOTHING = Sought()


def learnt(world: World, number: int, dataset: str, model: str = "demo") -> None:
    """Say which dataset a checkpoint of ``World.finish`` came from."""
    run = f"{ACME}/runs/{model}-{number}"
    checkpoint = f"{ACME}/runs/r/checkpoints/{model}-{number}"
    world.app.learn(
        [
            LineageNode(dataset, "dataset", DIGEST if dataset == BAD else ""),
            LineageNode(run, "run"),
            LineageNode(checkpoint, "checkpoint"),
        ],
        [LineageEdge(dataset, run), LineageEdge(run, checkpoint)],
    )


def serve(world: World, *datasets: str, model: str = "demo") -> None:
    """A version of each dataset, each of which served, the last of them now."""
    at_once(world, model)
    for number, dataset in enumerate(datasets, start=1):
        learnt(world, number, dataset, model)
        world.finish(number, model)
        world.look(LOOKS)
    assert serving(world, model) == len(datasets)


def at_once(world: World, model: str = "demo") -> None:
    """New versions of a model serve as soon as they answer."""
    now = world.clock()
    deployment = Deployment("acme", names.new_id("d"), model, now, now, strategy=Immediate())
    world.catalogue.add_deployment(deployment, RequestKey("", ""))


def recall(
    world: World,
    action: Action,
    *causes: Cause,
    request: str = "",
    id: str = "",
    sought: Sought = NOTHING,
) -> Recall:
    wished = Recall(
        tenant="acme",
        id=id or names.new_id("recall"),
        action=action,
        reason="asked by its author",
        create_time=world.clock(),
        causes=causes or (Cause(BAD, DIGEST, row_count=1),),
        sought=sought,
    )
    return world.recalls.create(wished, RequestKey(request, str(causes)))


def outcomes(made: Recall) -> dict[tuple[str, int], Outcome]:
    return {(v.met.model, v.met.number): v.met.outcome for v in made.versions}


def serving(world: World, model: str = "demo") -> int:
    found = world.catalogue.model("acme", model)
    return 0 if found is None else found.serving_version


def known(world: World) -> set[int]:
    return {version.number for version in world.catalogue.versions("acme", "demo", None, 100)}


def deliver(world: World, *facts: object) -> None:
    handlers = {s.message: s.handle for s in subscriptions(world.app)}
    for fact in facts:
        kind = type(fact)
        event = Event(names.new_id("event"), fact_of(kind), "acme", fact, world.clock())
        handlers[kind](event)
