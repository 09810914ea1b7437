"""tailfin: self-supervised visual pretraining with momentum (EMA) on the parts of the encoder that you choose."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailfin.backbones import encoder_metadata, load_encoder, narrow_resnet, small_images
    from tailfin.branch import Branch
    from tailfin.momentum import Decay, MomentumEncoder, Parts, Placement, scale_decay, split

__version__ = "0.1.0"
__all__ = [
    "Branch",
    "Decay",
    "MomentumEncoder",
    "Parts",
    "Placement",
    "encoder_metadata",
    "load_encoder",
    "narrow_resnet",
    "scale_decay",
    "small_images",
    "split",
]


def __getattr__(name: str) -> Any:
    # Importing torch takes about two seconds: `tailfin --help` must not pay for it.
    if name not in __all__:
        raise AttributeError(f"module 'tailfin' has no attribute {name!r}")
    from importlib import import_module

    backbones = ("encoder_metadata", "load_encoder", "narrow_resnet", "small_images")
    home = "branch" if name == "Branch" else "backbones" if name in backbones else "momentum"
    return getattr(import_module(f"tailfin.{home}"), name)
