"""Files copied into Triton's model repository; only the pure ones are ever imported from here."""
