"""What the demo says at its end: what was made, what happened when, and where to look."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from millrace_client import text, traces
from millrace_client.api import Json
from millrace_client.commands import trace as trace_command
from millrace_client.commands.events import line
from millrace_client.commands.models import VERSION_COLUMNS
from millrace_client.home import DEFAULT_HOME, HOME_VARIABLE
from millrace_client.output import table
from millrace_mesh.demo import facts, timings
from millrace_mesh.demo.answers import Answers
from millrace_mesh.demo.canary import CanaryWatch
from millrace_mesh.demo.session import Session
from millrace_mesh.demo.timings import Timing
from millrace_mesh.demo.traffic import Traffic

_QUIET_FACTS = ("key.created",)


@dataclass(frozen=True)
class Outcome:
    """What the demo made."""

    run: Json
    answers: Answers

    @property
    def tuned_model(self) -> str:
        return self.answers.tuned_model


def show(session: Session, outcome: Outcome, traffic: Traffic, canaries: CanaryWatch) -> None:
    """Everything, from the mesh's own records; call it once the demo's spans are written."""
    console = session.screen.console
    history = [fact for fact in facts.history(session) if _is_shown(fact)]
    trace_id = _trace_id(history, outcome.run["id"])
    found = traces.find(session.layout.home.traces, trace_id) if trace_id else []
    console.print(Rule("[bold]Answers[/]", align="left"))
    show_answers(session, outcome.answers)
    console.print(Rule("[bold]Versions[/] (checkpoint → artifact)", align="left"))
    for model in (session.plan.model, outcome.tuned_model):
        console.print(table(session.api.versions.list(model=model), VERSION_COLUMNS))
    console.print(Rule("[bold]Facts[/] (millrace events)", align="left"))
    for fact in history:
        console.print(line(fact))
    for one in found:
        console.print(Rule(f"[bold]Trace[/] (millrace trace {one.id[:12]})", align="left"))
        console.print(trace_command.tree(one))
    console.print(Rule("[bold]Traffic[/]", align="left"))
    show_traffic(session, traffic, canaries)
    console.print(Rule("[bold]From saved to served[/]", align="left"))
    spans = list(traces.read_spans(session.layout.home.traces))
    for model in (session.plan.model, outcome.tuned_model):
        console.print(timings_table(timings.of_facts(history, spans, model)))
    console.print(Rule("[bold]Where things are[/]", align="left"))
    show_places(session, outcome)


def show_answers(session: Session, answers: Answers) -> None:
    """The same question to the base model and to the tuned one."""
    console = session.screen.console
    console.print(Panel(Text(answers.question), title="asked, and never seen in tuning"))
    console.print(Panel(Text(answers.base), title=f"base: {session.plan.model}"))
    console.print(Panel(Text(answers.tuned), title=f"tuned: {answers.tuned_model}"))


def show_traffic(session: Session, traffic: Traffic, canaries: CanaryWatch) -> None:
    """Who answered, and how Triton counted it."""
    console = session.screen.console
    console.print(f"through the openai client: {traffic.summary}", markup=False)
    for error in traffic.errors[:3]:
        console.print(f"  {error}", markup=False)
    for split in canaries.splits.values():
        console.print(f"{split}", markup=False)


def timings_table(rows: Sequence[Timing]) -> Table:
    """Seconds from the fact that a checkpoint was saved."""
    result = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "checkpoint",
        "version",
        "saved → compression started",
        "saved → first token served",
        "saved → settled",
    ):
        result.add_column(name, justify="left" if name == "checkpoint" else "right")
    for row in rows:
        result.add_row(
            f"{row.model} step {row.step}",
            str(row.version or "-"),
            text.duration(row.compression_started),
            text.duration(row.first_token),
            text.duration(row.settled),
        )
    return result


def show_places(session: Session, outcome: Outcome) -> None:
    """Where to look, and how to stop."""
    layout, console = session.layout, session.screen.console
    is_default = layout.home.path == Path(DEFAULT_HOME).absolute()
    prefix = "" if is_default else f"{HOME_VARIABLE}={layout.home.path} "
    places = {
        "talk": f"{prefix}millrace chat {outcome.tuned_model}",
        "any OpenAI client": 'eval "$(millrace env)"',
        "REST, OpenAPI": f"{layout.gateway_url}/v1, {layout.gateway_url}/openapi.json",
        "gRPC": layout.address("gateway.grpc"),
        "facts": "millrace events --follow",
        "traces": f"millrace trace   ({layout.home.traces})",
        "metrics": f"{layout.gateway_url}/metrics",
        "Triton's metrics": f"{layout.url('triton.metrics')}/metrics",
        "lineage": f"millrace lineage {outcome.tuned_model}",
        "logs": f"millrace logs --follow   ({layout.home.logs})",
        "stop": f"{prefix}make down",
    }
    grid = Table.grid(padding=(0, 2))
    for name, place in places.items():
        grid.add_row(Text(name, style="bold"), Text(place))
    console.print(grid)


def _is_shown(fact: Json) -> bool:
    return not fact["subject"].endswith(_QUIET_FACTS)


def _trace_id(history: Sequence[Json], run: str) -> str:
    """The trace that made the run: this demo's, or that of an earlier one."""
    for fact in history:
        if fact["data"].get("run", "").endswith(f"/{run}") and fact.get("traceparent"):
            return str(fact["traceparent"].split("-")[1])
    return ""
