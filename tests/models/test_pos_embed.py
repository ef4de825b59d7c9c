import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.errors import CheckpointError
from vit21k.models.pos_embed import resize_pos_embed

MODES = ["bicubic", "bilinear_align_corners"]


def positions(side, prefix=1, width=6):
    generator = torch.Generator().manual_seed(side)
    return torch.randn(1, prefix + side * side, width, generator=generator)


@pytest.mark.parametrize("mode", MODES)
@given(side=st.integers(1, 9), prefix=st.integers(0, 1))
@settings(max_examples=20)
def test_the_same_grid_changes_nothing(mode, side, prefix):
    pos_embed = positions(side, prefix)

    resized = resize_pos_embed(pos_embed, (side, side), num_prefix_tokens=prefix, mode=mode)

    assert torch.equal(resized, pos_embed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", [(24, 24), (7, 7), (5, 9)])
def test_the_class_token_keeps_its_position(mode, grid):
    pos_embed = positions(14)

    resized = resize_pos_embed(pos_embed, grid, mode=mode)

    assert resized.shape == (1, 1 + grid[0] * grid[1], 6)
    assert torch.equal(resized[:, 0], pos_embed[:, 0])


@pytest.mark.parametrize("mode", MODES)
def test_rows_and_columns_are_not_exchanged(mode):
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)

    resized = resize_pos_embed(rows, (8, 4), num_prefix_tokens=0, mode=mode).view(8, 4)

    assert torch.allclose(resized, resized[:, :1].expand(8, 4), atol=1e-6)
    assert (resized[1:, 0] > resized[:-1, 0] - 0.2).all()
    assert resized[-1, 0] > resized[0, 0]


def test_bicubic_is_timms_without_antialias():
    layers = pytest.importorskip("timm.layers")
    pos_embed = positions(14)

    theirs = layers.resample_abs_pos_embed(
        pos_embed, [24, 24], num_prefix_tokens=1, interpolation="bicubic", antialias=False
    )

    torch.testing.assert_close(resize_pos_embed(pos_embed, (24, 24)), theirs)


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (7, 12), (4, 6)])
def test_bilinear_is_linear_interpolation_between_the_corners(old, new):
    """What `scipy.ndimage.zoom(order=1)` computes, written with numpy."""
    np = pytest.importorskip("numpy")
    grid = positions(old, prefix=0, width=1).view(old, old).double().numpy()
    at = np.linspace(0, old - 1, new)
    along_rows = np.stack([np.interp(at, np.arange(old), column) for column in grid.T], axis=1)
    expected = np.stack([np.interp(at, np.arange(old), row) for row in along_rows])

    resized = resize_pos_embed(
        positions(old, prefix=0, width=1),
        (new, new),
        num_prefix_tokens=0,
        mode="bilinear_align_corners",
    )

    np.testing.assert_allclose(resized.view(new, new).numpy(), expected, rtol=1e-5, atol=1e-4)


def test_the_result_is_float32_whatever_the_file_held():
    assert resize_pos_embed(positions(4).half(), (6, 6)).dtype == torch.float32
    assert resize_pos_embed(positions(4).half(), (4, 4)).dtype == torch.float32


def test_positions_that_form_no_square_are_refused():
    with pytest.raises(CheckpointError, match="square"):
        resize_pos_embed(torch.zeros(1, 1 + 15, 6), (6, 6))
