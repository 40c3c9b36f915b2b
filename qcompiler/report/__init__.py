"""What a compile did, and what is in a model, as plain data, tables and files."""
