"""ReSSL's pair of views; the other recipes are tested beside what is drawn from them."""

from dataclasses import replace

from tailfin.views.recipes import ViewRecipe, mocov2, ressl


def test_ressl_has_a_strong_view_and_one_that_is_cropped_and_flipped_alone() -> None:
    for size, smallest in ((32, 0.08), (224, 0.2)):
        strong, weak = ressl(size)
        assert weak == ViewRecipe(scale=(smallest, 1.0), flip=0.5)
        assert replace(strong, saturation=0.4) == mocov2(size)[0]
    assert ressl(32)[0].saturation == 0.2
    assert ressl(224)[0].saturation == 0.4
