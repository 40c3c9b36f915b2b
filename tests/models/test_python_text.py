from models import python_text


def test_held_out_paragraphs_are_not_in_the_calibration_text() -> None:
    held_out = python_text.evaluation_text().split("\n\n")
    rest = {" ".join(paragraph.split()) for paragraph in python_text.topic_text().split("\n\n")}
    assert len(held_out) > 50
    assert not [paragraph for paragraph in held_out if " ".join(paragraph.split()) in rest]


def test_the_split_is_stable() -> None:
    assert python_text.is_held_out("for")
    assert not python_text.is_held_out("while")
