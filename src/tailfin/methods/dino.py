"""DINO: each view predicts which prototypes the target gives the other view (arXiv 2104.14294)."""

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.methods._heads import Cosines, affordable, gelu_mlp
from tailfin.methods.base import WIDE, About, Method, Recipe, check_temperature, crossings, full_precision

LONGEST_WARMUP = 0.3
"""Share of a run that the teacher's warm-up may take: 30 of 100 epochs."""


class DINO(Method):
    """DINO; its prototypes are the projector's last layer, so momentum on the projector covers them.

    As published but for what a loss cannot do to a layer of the encoder: the authors hold the last layer still in the
    first epoch, and clip the gradient of each parameter.

    Attributes:
        centre: float32 [out], running mean of the target's projections.
    """

    stop_gradient = True
    about = About(
        title="DINO",
        family="prototypes",
        year=2021,
        source="2104.14294",
        idea="A student says how much each of many prototypes resembles a view, and is to agree with what a momentum "
        "teacher says of the other view. The teacher's answer is sharpened by a low temperature, so that it does not "
        "become uniform. Its running mean is taken off, so that no prototype wins everything.",
        equation=r"-\sum_k P_t(x')_k \log P_s(x)_k, \quad P_s = \mathrm{softmax}(g_s / \tau_s), \quad "
        r"P_t = \mathrm{softmax}((g_t - c) / \tau_t)",
        expected={"CIFAR-10": 89.52, "CIFAR-100": 66.76},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-6,
        trust_coefficient=0.02,
        clip=True,
        views="byol",
        placement="all",
        decay=0.9995,
        decay_end=1.0,
        hidden=2048,
        out=4096,
        batch_norm=False,
        source="solo-learn scripts/pretrain/cifar/dino.yaml; temperatures: solo/methods/dino.py; their warm-up: "
        "scripts/pretrain/imagenet-100/dino.yaml",
    )
    large = Recipe(
        optimizer="sgd",
        lr=0.03,
        weight_decay=1e-4,
        views="byol",
        placement="all",
        decay=0.996,
        decay_end=1.0,
        hidden=2048,
        out=65536,
        batch_norm=False,
        options={"teacher_temperature": 0.04, "teacher_epochs": 0.0},
        source="facebookresearch/dino README and main_dino.py, which add eight small crops, cut crops "
        "from .14 of the image on, and clip gradients at 3",
    )
    centre: Tensor

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        bottleneck: int = 256,
        temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        teacher_start: float = 0.04,
        teacher_epochs: float = 50.0,
        centring: int = 1,
        centring_momentum: float = 0.9,
    ) -> None:
        """`out` is the number of prototypes.

        The teacher's temperature rises linearly from `teacher_start` to `teacher_temperature` in `teacher_epochs`
        epochs, or in .3 of the run where that is shorter. `centring` 0 leaves the centre at 0: sharpening alone
        lets one prototype win everything (section 5.3, figure 7).

        Args:
            hidden: Hidden width of the projector.
            out: Prototypes.
            bottleneck: Width of the unit vectors that are compared with the prototypes.
            temperature: The student's.
            teacher_temperature: The teacher's, after its warm-up.
            teacher_start: The teacher's at first; and always in a loop that does not say which step it is at.
            teacher_epochs: Length of the warm-up.
            centring: Whether the target is centred.
            centring_momentum: Weight of the old centre, in [0, 1].

        Raises:
            ValueError: If a temperature is not above 0, `bottleneck` is below 1, `teacher_epochs` below 0 or
                `centring_momentum` outside [0, 1].
        """
        super().__init__(hidden, out)
        if bottleneck < 1:
            raise ValueError(f"bottleneck {bottleneck}; must be 1 or more")
        if not teacher_epochs >= 0:
            raise ValueError(f"teacher_epochs {teacher_epochs}; must be 0 or more")
        if not 0 <= centring_momentum <= 1:
            raise ValueError(f"centring_momentum {centring_momentum}; must be in [0, 1]")
        self.bottleneck = bottleneck
        self.temperature = check_temperature(temperature)
        self.teacher_temperature = check_temperature(teacher_temperature)
        self.teacher_start = check_temperature(teacher_start)
        self.teacher_epochs = teacher_epochs
        self.centring = bool(centring)
        self.centring_momentum = centring_momentum
        self.register_buffer("centre", torch.zeros(self.out))
        self._pending: tuple[Tensor, int] | None = None

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """As published from 512 features on; below 1024 prototypes, half the bottleneck. 12 images each at least."""
        wide = in_features >= WIDE
        values = super().defaults(in_features, images, image_size)
        return {
            **values,
            "out": affordable(int(values["out"]) if wide else 1024, images),
            "bottleneck": values["bottleneck"] if wide else 128,
        }

    def projector(self, in_features: int) -> nn.Module:
        """MLP, unit vectors, cosines with the prototypes: [N, in_features] -> float32 [N, out]."""
        return nn.Sequential(
            gelu_mlp(in_features, self.hidden, self.bottleneck), Cosines(self.bottleneck, self.out)
        )

    def teacher_now(self) -> float:
        """The teacher's temperature for the next loss."""
        moment = self.moment
        if moment is None:
            return self.teacher_start
        warmup = min(self.teacher_epochs * moment.steps_per_epoch, LONGEST_WARMUP * moment.total_steps)
        progress = min(1.0, moment.step / warmup) if warmup > 0 else 1.0
        return self.teacher_start + progress * (self.teacher_temperature - self.teacher_start)

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Cross entropy, the mean over pairs of views; in training mode the centre's news wait for `after_step`."""
        loss = distillation(online, target, self.centre, self.temperature, self.teacher_now())
        if self.centring and self.training and torch.is_grad_enabled():
            total, count = self._pending or (torch.zeros_like(self.centre), 0)
            for projection in target.projections:
                total, count = total + projection.detach().float().sum(dim=0), count + len(projection)
            self._pending = total, count
        return loss

    @torch.no_grad()
    def after_step(self, taken: bool = True) -> None:
        """Move the centre towards the mean over all micro-batches since the last call (equation 4)."""
        pending, self._pending = self._pending, None
        if taken and pending is not None:
            total, count = pending
            self.centre.lerp_((total / count).to(self.centre.dtype), 1 - self.centring_momentum)


def distillation(
    online: Branch, target: Branch, centre: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross entropy of the student's with the teacher's distribution (arXiv 2104.14294, equations 1 to 3).

    The mean over samples and over every online view with every target view but its own, a float32 scalar.

    Args:
        online: Projections, each [N, K].
        target: The same from the target branch, of the same views or of the first ones alone.
        centre: [K], taken off the target's projections.
        temperature: The student's.
        teacher_temperature: The teacher's.
    """
    with full_precision(centre):
        students = [(z.float() / temperature).log_softmax(dim=1) for z in online.projections]
        teachers = [((z.float() - centre) / teacher_temperature).softmax(dim=1) for z in target.projections]
        losses = [-(teachers[j] * students[i]).sum(dim=1).mean() for i, j in crossings(online, target)]
        return torch.stack(losses).mean()
