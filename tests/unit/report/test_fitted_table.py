"""Columns and cells give way to the width that there is."""

from rich.console import Console

from qcompiler.report.fitted_table import Column, FittedTable, Row, cut_middle, rows_of

NAME = "model.decoder.layers.17.encoder_attention.inner_projection.q_proj"
COLUMNS = (
    Column("name", 0, "name", 32),
    Column("op", 2, "words", 11),
    Column("stored as"),
    Column("bytes", 1, right=True),
    Column("why", 3, "words", 14, below=True),
)


def _lines(table: FittedTable, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert all(len(line) <= width for line in lines), lines
    return lines


def test_all_of_it_where_it_fits() -> None:
    rows = rows_of([("fc1", "MatMul", "int4", "1 kB", "recipe"), ("[b]fc2", "Gemm", "float", "12 kB", "")])
    assert _lines(FittedTable(COLUMNS, rows, "layers"), 80) == [
        "layers",
        "name    op      stored as  bytes  why",
        "fc1     MatMul  int4        1 kB  recipe",
        "[b]fc2  Gemm    float      12 kB",
    ]


def test_what_matters_least_is_left_out_and_said_to_be() -> None:
    rows = rows_of([("layers.0.attention.projection", "MatMulNBits", "int4 g32", "1 kB", "a rule")])
    assert _lines(FittedTable(COLUMNS, rows), 60) == [
        "name                           op           stored as  bytes",
        "layers.0.attention.projection  MatMulNBits  int4 g32    1 kB",
        "left out: why (--json or a wider screen has them)",
    ]
    assert _lines(FittedTable(COLUMNS, rows), 50)[:2] == [
        "name                           stored as  bytes",
        "layers.0.attention.projection  int4 g32    1 kB",
    ]


def test_columns_of_one_rank_stay_or_go_together() -> None:
    columns = (Column("name", 0, "name", 32), Column("p10", 1), Column("p90", 1), Column("share", 2))
    table = FittedTable(columns, rows_of([("prefill", "1.2 ms", "1.5 ms", "5 %")]))
    assert _lines(table, 30)[0].split() == ["name", "p10", "p90", "share"]
    assert _lines(table, 24)[0].split() == ["name", "p10", "p90"]
    assert _lines(table, 20)[0].split() == ["name", "share"]


def test_a_column_that_says_nothing_is_not_missed() -> None:
    rows = rows_of([("layers.0.attention.projection", "", "int4 g32", "1 kB", "")])
    assert "left out" not in " ".join(_lines(FittedTable(COLUMNS, rows), 50))


def test_a_long_name_is_cut_in_its_middle_on_a_narrow_screen_alone() -> None:
    rows = rows_of([(NAME, "MatMulNBits", "int4 g32 asym, awq + mse", "1 kB", "a rule")])
    line = _lines(FittedTable(COLUMNS, rows), 80)[1]
    assert line.startswith("model.") and "_projection.q_proj  " in line and "..." in line
    rows = rows_of([(NAME * 3, "MatMulNBits", "int4 g32 asym, awq + mse", "1 kB", "a rule")])
    wide = _lines(FittedTable(COLUMNS, rows), 160)
    assert "".join(line[: line.find("  ") if "  " in line else None] for line in wide[1:]) == NAME * 3


def test_who_has_to_be_told_why_is_told_below() -> None:
    why = "both factors are activations, and nothing of either is known before the model runs"
    rows = [
        *(Row((f"layers.{i}.projection", "MatMul", "int4", "1 kB", "a rule")) for i in range(4)),
        Row(("  scores", "MatMul", "float", "", why), tell=True),
    ]
    assert _lines(FittedTable(COLUMNS, rows), 60)[-2:] == [
        "  scores             MatMul  float",
        "    both factors are activations, and nothing of either i...",
    ]
    # Nothing is cut where there is room for more lines.
    wide = " ".join(_lines(FittedTable(COLUMNS, [*rows, Row(("x" * 80, "", "", "", ""))]), 160))
    assert all(word in wide for word in why.split())


def test_too_narrow_for_what_always_stays() -> None:
    rows = rows_of([(NAME, "MatMulNBits", "int4 g32 asym", "1 kB", "a rule")])
    for width in (3, 8, 20, 30):
        _lines(FittedTable(COLUMNS, rows), width)


def test_the_middle_is_cut() -> None:
    assert cut_middle("abcdefghijkl", 12) == "abcdefghijkl"
    assert cut_middle("abcdefghijklm", 12) == "abc...hijklm"
    assert cut_middle("    abcdefghijklm", 14) == "    ...ghijklm"  # a tree keeps its form
