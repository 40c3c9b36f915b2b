"""The verbs of the command line, one a file: arguments in, a call, tables or JSON out; no logic.

A verb imports what it calls where it calls it: ``qcompile --help`` must not load torch. ``cli.py`` lists them.
"""
