"""``python -m millrace_mesh.demo``: what ``make demo`` runs."""

import argparse
import os
import sys
import time
from dataclasses import replace

import openai

from millrace_client import text
from millrace_client.errors import MillraceError
from millrace_mesh import control
from millrace_mesh.demo import (
    answers,
    canary,
    dataset,
    facts,
    pairs,
    report,
    run,
    serving,
    traffic,
    tuning,
)
from millrace_mesh.demo.plan import FULL, QUICK, Plan
from millrace_mesh.demo.report import Outcome
from millrace_mesh.demo.screen import DemoFailed, Screen
from millrace_mesh.demo.session import Session, ensure_mesh, open_session
from millrace_mesh.demo.traffic import Traffic
from millrace_mesh.layout import Layout, LayoutError, layout_from_environ
from millrace_runtime import telemetry

# Services write their spans twice a second.
_SPANS_WRITTEN_SECONDS = 1.5


def main() -> int:
    screen = Screen()
    try:
        _demo(layout_from_environ(), _plan(), screen)
    except (DemoFailed, LayoutError, MillraceError, control.StartFailed) as error:
        screen.console.print(f"the demo failed: {error}", style="bold red", markup=False)
        return 1
    except openai.OpenAIError as error:
        kind = type(error).__name__
        screen.console.print(f"the demo failed: {kind}: {error}", style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        screen.console.print("\nthe mesh runs on; stop it with: make down")
        return 130
    return 0


def _plan() -> Plan:
    parser = argparse.ArgumentParser(
        prog="python -m millrace_mesh.demo",
        description="Carry a model through its whole life: data, pre-training, compression, "
        "canary, serving, fine-tuning. Run again, it reuses what is there.",
    )
    parser.add_argument("--quick", action="store_true", help="a toy model, in about two minutes")
    parser.add_argument("--steps", type=int, help="training steps, instead of the plan's")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    if arguments.steps:
        every = max(1, arguments.steps // 4)
        sizes = {"total_steps": arguments.steps, "checkpoint_every_steps": every}
        plan = replace(plan, hyperparameters={**plan.hyperparameters, **sizes})
    return plan


def _demo(layout: Layout, plan: Plan, screen: Screen) -> None:
    with screen.stage("The mesh"):
        ensure_mesh(layout, screen)
    os.environ[telemetry.TRACE_DIRECTORY_VARIABLE] = str(layout.home.traces)
    write_spans = telemetry.start_tracing("millrace-demo")
    with open_session(layout, plan, screen) as session:
        with (
            telemetry.span("demo"),
            facts.shown(session),
            traffic.ready(session) as steady,
            canary.watched(session, steady) as canaries,
        ):
            outcome = _live(session, steady)
        write_spans()
        time.sleep(_SPANS_WRITTEN_SECONDS)
        report.show(session, outcome, steady, canaries)
    took = text.duration(time.monotonic() - screen.started)
    screen.say(f"the whole life of {plan.model} took {took}")


def _live(session: Session, steady: Traffic) -> Outcome:
    screen, plan = session.screen, session.plan
    with screen.stage("Data: a dataset from this Python's own library"):
        source = dataset.ensure(session)
        training = run.ensure(session, source)  # it waits for the dataset by itself
        dataset.wait(session, source)
    with screen.stage("Training; each checkpoint is compressed, measured and rolled out"):
        training = run.follow(session, training, steady)
        final = run.final_checkpoint(session, training)
        version = serving.wait_for_checkpoint(session, final["name"], plan.model, steady.summary)
        serving.wait_until_loaded(session, plan.model)
        screen.say(f"{version['id']} serves: {serving.greeting(session, plan.model)}")
        steady.stop()
        steady.require_no_failure()
    with screen.stage("Fine-tuning with the openai package"):
        examples = pairs.ensure(session)
        job = tuning.ensure(session, pairs.upload(session, examples.train))
        job = tuning.follow(session, job)
        serving.wait_until_loaded(session, job["fine_tuned_model"])
        said = answers.ask(session, examples.question, job["fine_tuned_model"])
    return Outcome(training, said)


if __name__ == "__main__":
    sys.exit(main())
