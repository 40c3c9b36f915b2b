"""Graph transformations, one file each: a model comes in, the same model with one thing changed goes out.

The folder is at the top of the repository and is imported through the link ``qcompiler/passes``, always
as ``qcompiler.passes``: under a second name every class here would exist twice, and ``isinstance`` would lie.
"""

if __name__ != "qcompiler.passes":
    raise ImportError(
        f"this folder was imported as {__name__!r}; import qcompiler.passes instead "
        "(the repository's root is on sys.path, and qcompiler/passes is a link to this folder)"
    )
