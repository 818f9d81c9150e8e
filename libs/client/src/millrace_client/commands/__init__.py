"""The commands of ``millrace``, one file a noun."""
