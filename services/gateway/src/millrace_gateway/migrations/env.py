"""How Alembic runs: within the transaction that ``millrace_runtime.database.migrate`` opened."""

from alembic import context

from millrace_gateway.store import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
