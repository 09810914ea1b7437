"""Settings: what is refused, and that a file of them gives them back."""

from dataclasses import replace
from pathlib import Path

import pytest

from tailfin.errors import UserError
from tailfin.run import config as settings
from tailfin.run.config import Config


def test_a_saved_file_gives_the_settings_back(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config = Config(
        data="my photos", decay=0.97, lr=1.0, limit=20, method_options={"temperature": 0.1}, precision="bf16"
    )
    settings.save(config, path)
    assert settings.read(path) == config
    settings.save(replace(config, out="elsewhere"), path)
    assert settings.read(path).out is None  # a file says what was run, not where


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"unknown setting 'epoch' in .*run\.toml.*did you mean 'epochs'"),
        ('epochs = "3"', r"setting 'epochs' in .*run\.toml is '3'; it must be of type int"),
        ("epochs = 2.5", "must be of type int"),
        ("through = 1", "must be of type bool"),
        ('decay = "high"', "must be of type float"),
        (
            'precision = "bf61"',
            r"unknown value of precision 'bf61'.*allowed: fp32, bf16; did you mean 'bf16'",
        ),
        ("decay = 1.5", r"--decay is 1\.5; it must lie in \[0, 1\]"),
        ("decay = nan", r"--decay is nan; it must lie in \[0, 1\]"),
        ("lr = -1", "--lr is -1.0; it must be at least 0"),
        ("batch_size = 0", "--batch-size is 0; it must be at least 1"),
        ("batch_size = 10\naccumulate = 4", "is no multiple of --accumulate 4"),
        ("batch_size = 4\naccumulate = 4", "less than 2 images a micro-batch"),
        ("tailfin_config = 99", "are of format 99; this version of tailfin reads format 1"),
        ("epochs = = 3", "not valid TOML"),
        ("[method_options]\ntemperature = 'x'", "setting 'method_options.temperature'"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        settings.read(path)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.toml: No such file"):
        settings.read(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="line 1 is not UTF-8"):
        settings.read(tmp_path / "b.toml")


def test_differences_name_what_matters_and_only_that() -> None:
    old = Config(lr=0.3)
    assert settings.differences(old, replace(old, workers=3, out="x", cache="y", checkpoint_minutes=1)) == []
    assert settings.differences(old, replace(old, lr=0.5, momentum="all")) == [
        "--momentum was 'published' and is now 'all'",
        "--lr was 0.3 and is now 0.5",
    ]


def test_a_run_folder_or_a_study_in_place_of_settings_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("epochs = 3\n")
    with pytest.raises(
        UserError, match=r"is a folder, not a file of settings; did you mean .*config\.toml\?"
    ):
        settings.read(tmp_path)
    study = tmp_path / "study.toml"
    study.write_text("tailfin_study = 1\n")
    with pytest.raises(UserError, match=r"is a study, not the settings of a run; run it by: tailfin study"):
        settings.read(study)
