from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from drawing.figures import save
from drawing.regions import region_colours, region_overlay


def test_every_position_has_the_colour_of_its_region(tmp_path: Path) -> None:
    regions = np.array([[0, 1, 1], [2, 2, 2]])
    figure = region_overlay([np.full((20, 30, 3), 255, np.uint8)], [regions], 4, "layer 3", opacity=1.0)
    image = np.asarray(Image.open(save(figure, tmp_path / "regions.png")).convert("RGBA")) / 255
    box = figure.axes[1].get_window_extent()
    pixels_of_a_dot = image.shape[1] / figure.bbox.width
    for row in range(2):
        for column in range(3):
            x = (box.x0 + box.width * (column + 0.5) / 3) * pixels_of_a_dot
            y = image.shape[0] - (box.y0 + box.height * (1 - (row + 0.5) / 2)) * pixels_of_a_dot
            expected = region_colours(4)[regions[row, column]]
            assert image[int(y), int(x)] == pytest.approx(expected, abs=0.02), (row, column)


def test_legend_gives_the_share_of_every_region() -> None:
    maps = [np.array([[0, 0], [0, 1]]), np.array([[1]])]
    figure = region_overlay([np.zeros((8, 8, 3), np.uint8), np.zeros((100, 50, 3), np.uint8)], maps, 3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["region 0: 38%", "region 1: 62%", "region 2: 0%"]
    patches = [to_rgba(patch.get_facecolor()) for patch in legend.get_patches()]
    assert np.allclose(patches, region_colours(3))
    assert [len(axes.images) for axes in figure.axes] == [1, 2, 1, 2]


@pytest.mark.parametrize("num_regions", [1, 8, 10, 12, 20, 33])
def test_colours_differ(num_regions: int) -> None:
    assert len(np.unique(region_colours(num_regions), axis=0)) == num_regions


@pytest.mark.parametrize(("maps", "message"), [([], "0 maps"), ([np.array([[4]])], "0 to 3"), ([[[-1]]], "0 to 3")])
def test_bad_maps(maps: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        region_overlay([np.zeros((8, 8, 3), np.uint8)], maps, 4)
