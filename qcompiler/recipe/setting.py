"""One change of a recipe, ``KEY=VALUE``, and what the user wrote to ask for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """``--budget 4.5bpw`` is the setting ``mixed.budget=4.5bpw``.

    Attributes:
        line: ``KEY=VALUE``, the value in YAML.
        said: what errors call it.
    """

    line: str
    said: str


def as_setting(given: str | Setting) -> Setting:
    """A bare line is what ``--set`` takes."""
    return given if isinstance(given, Setting) else Setting(given, f"--set {given}")


def budget_settings(
    budget: str | None, max_kl: float | None
) -> tuple[tuple[Setting, ...], tuple[Setting, ...]]:
    """What ``--budget`` and ``--max-kl`` change, before all other settings and after them.

    After them, so that a section that another setting gives as a whole keeps them. A recipe's own budget gives way to
    ``--max-kl`` before them: one that a setting names stays, and rules.
    """
    before, after = [], []
    if max_kl is not None:
        said = f"--max-kl {max_kl:g}"
        before.append(Setting("mixed.budget=", said))
        after.append(Setting(f"mixed.max_kl={max_kl!r}", said))
    if budget is not None:
        after.append(Setting(f"mixed.budget={budget}", f"--budget {budget}"))
    return tuple(before), tuple(after)
