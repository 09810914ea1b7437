"""The README's code runs as written."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tailfin import backbones
from tailfin.momentum import MomentumEncoder, split
from tailfin.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )


def test_the_library_snippet_runs_and_updates_the_projector_alone() -> None:
    snippet = next(block for block in blocks("python") if "MomentumEncoder" in block)
    names: dict[str, object] = {}
    exec(snippet, names)
    encoder = names["encoder"]
    assert encoder.updates == 1  # type: ignore[attr-defined]
    slow, fast = encoder.momentum_part("projector")[0].weight, names["head"][0].weight  # type: ignore[attr-defined, index]
    assert not slow.equal(fast)


def test_the_backbone_snippet_gives_the_features_of_normalised_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippet = next(block for block in blocks("python") if "load_encoder" in block)
    file = tmp_path / re.search(r'"(runs/.*)"', snippet)[1]  # type: ignore[index]
    file.parent.mkdir(parents=True)
    encoder = MomentumEncoder(split(backbones.create("resnet10w2", image_size=32)), placement="none")
    about = {"backbone": "resnet10w2", "image_size": 32, "channels": 3, "mean": [0.4] * 3, "std": [0.2] * 3}
    RunFolder(file.parent).save_encoder(encoder, about)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)
    torch.testing.assert_close(
        names["features"], encoder.eval().encode((names["images"] - 0.4) / 0.2)[0], rtol=1e-5, atol=1e-6
    )


def test_the_two_commands_stand_first() -> None:
    first, second = blocks("sh")[:2]
    assert first.strip() == "pip install -e . && tailfin pretrain"
    assert second.strip() == "pip install -e '.[test]' && pytest"


def test_every_option_and_command_in_the_docs_exists() -> None:
    import dataclasses

    from tailfin.cli import options

    known = {
        "--" + field.name.replace("_", "-")
        for kind in (
            options.Pretrain,
            options.Evaluate,
            options.List,
            options.Data,
            options.Pack,
            options.Study,
        )
        for field in dataclasses.fields(kind)
    }
    known |= set(re.findall(r'"(--[a-z-]+)"', (ROOT / "docs" / "make_architecture.py").read_text()))
    known |= {
        "--nproc-per-node",
        "--nnodes",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--max-restarts",
    }  # torchrun's
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        assert used <= known, f"{path.name}: {used - known}"
        for command in re.findall(r"(?:`|\n|&& )tailfin ([a-z]+)", text):
            assert command in re.findall(r"^  (\w+)  ", options.HELP, re.MULTILINE), command
        for link in re.findall(r"\]\(([^)#h][^)]*)\)", text):
            assert (path.parent / link).exists(), link
