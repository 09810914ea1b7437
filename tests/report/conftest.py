import math

import pytest
import torch

from tailfin.report.page import PartRow, ReportContent


@pytest.fixture
def parts() -> list[PartRow]:
    return [
        PartRow("stem", 0.03, False, False),
        PartRow("layer1", 0.5, False, False),
        PartRow("layer2", 0.4, True, True),
        PartRow("norm", 0.0002, False, True),
        PartRow("projector", 0.0698, True, True),
    ]


@pytest.fixture
def content(parts: list[PartRow]) -> ReportContent:
    draw = torch.Generator().manual_seed(0)
    scores = {
        "backbone_online": {"knn": 57.5, "linear": 60.6},
        "projector_online": {"knn": 52.1, "linear": 49.9},
        "projector_momentum": {"knn": 52.6, "linear": 50.3},
        "untrained": {"knn": 32.3, "linear": 36.6},
        "raw_pixels": {"knn": 41.9, "linear": 38.8},
    }
    return ReportContent(
        config={"method": "simclr", "data": "cifar10", "momentum": {"decay": 0.99, "buffers": "batch"}},
        metrics=[
            *(
                {"step": s, "epoch": s / 100, "loss": 5 * math.exp(-s / 200), "lr": 0.3, "decay": 0.99}
                for s in range(10, 400, 10)
            ),
            *({"step": s, "epoch": s / 100, "knn": 30.0 + s / 20} for s in (100, 200, 300)),
        ],
        timing=[{"step": s, "images_per_second": 2000.0 + s, "data_wait": 0.031} for s in range(50, 400, 50)],
        stability=[
            {"step": 10 * i, "gradient": {"stem": [0.1] * 10, "layer4": [0.2 + 0.01 * i] * 10}}
            for i in range(1, 31)
        ]
        + [
            {
                "step": s,
                "probe": {
                    "gap": {"stem": 1.0, "layer4": 0.9},
                    "online_drift": {"stem": 0.1, "layer4": 0.3},
                    "target_drift": {"stem": 0.1, "layer4": 0.1},
                },
            }
            for s in (100, 200, 300)
        ],
        result={
            "knn": 57.5,
            "linear": 60.6,
            "scores": scores,
            "untrained": scores["untrained"],
            "raw_pixels": scores["raw_pixels"],
            "images_per_second": 2093.4,
            "target_cost": {"predicted": 0.47, "measured": 0.49},
            "seed": 7,
            "versions": {"python": "3.11.2", "torch": "2.15.0"},
            "device": "cpu",
            "seconds": 287.3,
            "verdict": {
                "state": "healthy",
                "words": "The loss fell steadily.",
                "evidence": ["rank 81 of 128"],
            },
            "unjudged": [],
            "train_images": 45000,
            "test_images": 10000,
            "validation_knn": 56.9,
            "parameters": 11_173_962,
        },
        parts=parts,
        placement="layer2,projector",
        views=torch.randint(0, 256, (3, 3, 3, 8, 8), dtype=torch.uint8, generator=draw),
        neighbours=torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8, generator=draw),
        neighbour_names=[["cat", "cat", "dog", "cat"], ["ship", "truck", "ship", "car"]],
        skipped=[("broken.jpg", "truncated"), ("readme.txt", "not an image")],
        command="tailfin pretrain --data cifar10 --placement layer2,projector",
    )
