"""How fast models run and load, and what memory they take; two of them in pairs."""
