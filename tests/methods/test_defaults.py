"""What each method's constructor is given by default, against literals read in the sources that its recipes name."""

import pytest

from tailfin import methods

# By method: options that both sizes share, then what 32 px and 224 px each have. Whose they are is in the recipes'
# `source`; what is our own or stands in another file of theirs is said beside the row.
Options = dict[str, float]
DEFAULTS: dict[str, tuple[Options, Options, Options]] = {
    # The centroids' temperature and both weights: solo/losses/nnclr.py and solo/methods/all4one.py. At 224 px
    # scripts/pretrain/imagenet-100/all4one.yml has a queue of 98340, which its batch of 128 does not divide.
    "all4one": (
        {
            "temperature": 0.2,
            "centroid_temperature": 0.1,
            "centroid": 0.5,
            "feature": 5.0,
            "queue_size": 98_304,
            "hidden": 2048,
            "out": 256,
        },
        {},
        {},
    ),
    "barlow_twins": (
        {"redundancy": 0.0051},
        {"scale": 0.1, "hidden": 2048, "out": 2048},
        {"scale": 0.048, "hidden": 4096, "out": 4096},
    ),
    "byol": ({"predictor": 1, "stop_gradient": 1, "hidden": 4096, "out": 256}, {}, {}),
    # sigma 0 is DCL, above it is DCLW.
    "dcl": ({"temperature": 0.1, "sigma": 0.0, "out": 128}, {"hidden": 512}, {"hidden": 2048}),
    "deepclusterv2": (
        {"heads": 3, "prototypes": 3000, "temperature": 0.1, "iterations": 10, "hidden": 2048, "out": 128},
        {"images": 50_000},
        {"images": 1_281_167},
    ),
    # `out` is the number of prototypes, `bottleneck` the width before them.
    "dino": (
        {
            "bottleneck": 256,
            "temperature": 0.1,
            "teacher_start": 0.04,
            "centring": 1,
            "centring_momentum": 0.9,
            "hidden": 2048,
        },
        {"teacher_temperature": 0.07, "teacher_epochs": 50.0, "out": 4096},
        {"teacher_temperature": 0.04, "teacher_epochs": 0.0, "out": 65_536},
    ),
    "lejepa": (
        {"regularisation": 0.05, "knots": 17, "hidden": 2048},
        {"directions": 256, "out": 128},
        {"directions": 1024, "out": 512},
    ),
    "mmcr": (
        {"local": 0.0},
        {"layers": 2, "hidden": 512, "out": 128},
        {"layers": 3, "hidden": 8192, "out": 512},
    ),
    "mocov2plus": (
        {"temperature": 0.2, "hidden": 2048, "out": 256},
        {"queue_size": 32_768},
        {"queue_size": 65_536},
    ),
    "mocov3": ({"hidden": 4096, "out": 256}, {"temperature": 0.2}, {"temperature": 1.0}),
    "nnbyol": ({"queue_size": 65_536, "hidden": 4096, "out": 256}, {}, {}),
    "nnclr": ({"temperature": 0.2, "queue_size": 65_536, "hidden": 2048, "out": 256}, {}, {}),
    "nnsiam": ({"queue_size": 65_536, "hidden": 2048, "out": 2048}, {}, {}),
    "ressl": (
        {"temperature": 0.1, "target_temperature": 0.04, "hidden": 4096},
        {"queue_size": 65_536, "out": 256},
        {"queue_size": 131_072, "out": 512},
    ),
    # Scale, bias and pace: ours. The rest is SimCLR's.
    "sigmoid_pairwise": (
        {"scale": 5.0, "bias": -5.0, "pace": 0.01, "learn_scale": 0, "hidden": 2048, "out": 256},
        {},
        {},
    ),
    "simclr": ({"hidden": 2048}, {"temperature": 0.2, "out": 256}, {"temperature": 0.1, "out": 128}),
    # ChaoningZhang/Dual-temperature's `dt_m` is `multiple`.
    "simco": ({"temperature": 0.1, "multiple": 10.0, "hidden": 128, "out": 128}, {}, {}),
    # The README's `--eps 0.05`; main_dino.py's own default is .5.
    "simdino": ({"distortion": 0.05, "rate": 1.0, "hidden": 2048, "out": 256}, {}, {}),
    "simsiam": ({"predictor": 1, "stop_gradient": 1, "hidden": 2048, "out": 2048}, {}, {}),
    "supcon": ({"temperature": 0.2, "hidden": 2048}, {"out": 256}, {"out": 512}),
    # solo-learn freezes the prototypes for two epochs at 32 px, the authors for one (5005 steps of 256 images).
    "swav": (
        {
            "prototypes": 3000,
            "temperature": 0.1,
            "epsilon": 0.05,
            "iterations": 3,
            "frozen_epochs": 1.0,
            "queue_size": 3840,
            "hidden": 2048,
            "out": 128,
        },
        {"queue_epochs": 50.0},
        {"queue_epochs": 15.0},
    ),
    "tico": ({"contrast": 8.0, "memory": 0.9, "hidden": 4096, "out": 256}, {}, {}),
    "vibcreg": (
        {"invariance": 25.0, "variance": 25.0, "covariance": 200.0, "hidden": 2048, "out": 2048},
        {},
        {},
    ),
    # The authors' variance term is the mean over both views, solo-learn's and ours the sum: 25 there is 12.5 here.
    "vicreg": (
        {"invariance": 25.0, "covariance": 1.0},
        {"variance": 25.0, "hidden": 2048, "out": 2048},
        {"variance": 12.5, "hidden": 8192, "out": 8192},
    ),
    # The shrinkage is ours; the authors' is 0.
    "wmse": (
        {"shrinkage": 1e-6, "hidden": 1024},
        {"sub_batch": 128, "out": 64},
        {"sub_batch": 256, "out": 128},
    ),
}


def test_no_method_is_missing() -> None:
    assert tuple(sorted(DEFAULTS)) == methods.names()
    assert len(DEFAULTS) == 25


@pytest.mark.parametrize("name", methods.names())
def test_the_defaults_are_the_published_ones(name: str) -> None:
    cls = methods.load(name)
    both, small, large = DEFAULTS[name]
    assert cls.defaults(512, 50_000) == {**both, **small}
    assert cls.defaults(2048, 1_281_167, 224) == {**both, **large}
