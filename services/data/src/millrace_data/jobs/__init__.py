"""The long pieces of work of the data service, each a subprocess of its own."""
