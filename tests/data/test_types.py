"""channel_statistics equals the plain mean and deviation, and never holds the images as floats."""

import subprocess
import sys

import pytest
import torch

from tailfin.data import ImageSet, channel_statistics


@pytest.mark.parametrize("shape", [(7, 3, 5, 4), (50, 1, 8, 8), (1, 3, 2, 2)])
def test_statistics_equal_the_definition(shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images)
    values = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(values.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-12)


def test_the_sample_spans_the_whole_set():
    # Sorted by class, as folders are: the first half alone would say 0.
    images = torch.arange(2).repeat_interleave(1000).mul(255).to(torch.uint8).view(-1, 1, 1, 1)
    assert channel_statistics(images, most=1001)[0] == pytest.approx((0.5,), abs=0.01)


def test_a_constant_channel_has_a_deviation_to_divide_by():
    assert channel_statistics(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8))[1] == (1e-3,)


def test_memory_stays_bounded():
    # A process of its own, because the peak of this one is already spent.
    code = (
        "import resource, torch; from tailfin.data import channel_statistics;"
        "torch.set_num_threads(1); images = torch.ones(1, 3, 224, 224, dtype=torch.uint8).expand(4000, -1, -1, -1);"
        "channel_statistics(images[:10]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "channel_statistics(images); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert grown < 200 * 1024


def test_subset_picks_labels_and_aspects_along():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    part = ImageSet(
        images, torch.tensor([5, 6, 7, 8]), tuple("abcdefghi"), torch.tensor([1.0, 2.0, 3.0, 4.0])
    )
    part = part.subset(torch.tensor([3, 1]))
    assert (part.images.flatten().tolist(), part.labels.tolist(), part.aspect.tolist()) == (
        [3, 1],
        [8, 6],
        [4, 2],
    )
