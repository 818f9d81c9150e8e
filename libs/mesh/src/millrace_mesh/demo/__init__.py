"""A model's whole life, live: ``python -m millrace_mesh.demo``, which ``make demo`` runs.

It is a client like any other: it asks the gateway for a dataset, a training run and a
fine-tuning job, talks to what is served meanwhile through the ``openai`` package, and shows the
facts as they come. Everything in between, the services do by themselves.
"""
