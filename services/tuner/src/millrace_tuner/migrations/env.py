"""Alembic's entry: runs on the connection that ``millrace_runtime.database.migrate`` hands over."""

from alembic import context

from millrace_tuner.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
