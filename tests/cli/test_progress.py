"""What is said while a run goes on."""

import pytest

from tailfin.cli import progress


def test_lines_come_at_most_every_ten_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    lines = progress.Lines(said.append)
    lines.begin(100, 200)
    for step, second in ((110, 4.0), (120, 9.0), (125, 11.0), (150, 15.0), (200, 16.0)):
        now[0] = second
        lines.step(step, 1.23456, 321.9, 0.031, 45.67 if step > 130 else None)
    assert said == [
        "step 125/200  loss 1.2346  322 images/s  data wait 3 %  left 0:00:33",
        "step 200/200  loss 1.2346  322 images/s  data wait 3 %  kNN 45.7 %  left 0:00:00",
    ]


def test_decoding_speaks_only_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tell = progress.decoding()
    for done, second in ((32, 1.0), (64, 10.5), (96, 12.0)):
        now[0] = second
        tell(done, 100)
    assert capsys.readouterr().out == "decoding    64 of 100 images\n"


def test_the_bar_shows_loss_speed_wait_and_knn(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress.Bar()
    bar.begin(0, 10)
    bar.step(5, 1.5, 300.0, 0.25, 40.0)
    note = bar._bar.tasks[0].fields["note"]
    bar.close()
    assert note == "loss 1.5000  300 images/s  data wait 25 %  kNN 40.0 %"
