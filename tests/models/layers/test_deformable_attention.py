import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.deformable_attention import DeformableAttention, Levels, weighted_samples

SIZES = [(5, 6), (3, 2), (1, 1)]
HEADS, POINTS, DIM = 2, 3, 8
LEVELS = Levels.of(SIZES, torch.device("cpu"))
TOKENS = sum(height * width for height, width in SIZES)


def samples(queries: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, column, row and weight of samples, some of them outside of the maps."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, queries, HEADS, len(SIZES) * POINTS)
    value = torch.randn(2, TOKENS, HEADS, DIM // HEADS, generator=generator, dtype=dtype)
    x, y = (torch.rand(shape, generator=generator, dtype=dtype) * 10 - 3 for _ in range(2))
    return value, x, y, torch.rand(shape, generator=generator, dtype=dtype)


def definition(value: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Equation 3, with `grid_sample`."""
    total = torch.zeros(*x.shape[:3], value.shape[-1], dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(SIZES):
        mine = slice(level * POINTS, (level + 1) * POINTS)
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))
        cells = torch.stack([(2 * x[..., mine] + 1) / width - 1, (2 * y[..., mine] + 1) / height - 1], -1)
        read = F.grid_sample(maps, cells.transpose(1, 2).flatten(0, 1), align_corners=False)
        read = read.unflatten(0, (-1, HEADS)).permute(0, 3, 1, 4, 2)
        total = total + (read * weights[..., mine, None]).sum(3)
        start += height * width
    return total.flatten(2)


def module() -> DeformableAttention:
    torch.manual_seed(0)
    attention = DeformableAttention(DIM, HEADS, len(SIZES), POINTS)
    torch.nn.init.normal_(attention.sampling_offsets.weight)
    torch.nn.init.normal_(attention.attention_weights.weight)
    return attention


def arguments(coordinates: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    query, memory = (torch.randn(2, n, DIM, generator=generator) for n in (4, TOKENS))
    return query, torch.rand(2, 4, len(SIZES), coordinates, generator=generator), memory


def test_samples_are_the_definition() -> None:
    results = []
    for function in (definition, lambda *tensors: weighted_samples(tensors[0], LEVELS, *tensors[1:])):
        tensors = [x.requires_grad_() for x in samples()]
        output = function(*tensors)
        gradients = torch.autograd.grad(output, tensors, torch.linspace(-1, 1, output.numel()).view_as(output))
        results.append((output, *gradients))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    tensors = [x.requires_grad_() for x in samples(2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: weighted_samples(t[0], LEVELS, *t[1:]), tensors)


def test_frozen_values_need_no_gradient() -> None:
    value, *others = samples()
    value.requires_grad_(False)
    weighted_samples(value, LEVELS, *(x.requires_grad_() for x in others)).sum().backward()
    assert all(x.grad is not None for x in others)


def test_far_outside_there_is_nothing() -> None:
    value, x, y, weights = samples()
    for away in (-1e9, -1.0, 1e9):
        assert (weighted_samples(value, LEVELS, torch.full_like(x, away), y, weights) == 0).all()


def test_a_nan_stays_with_its_query() -> None:
    attention = module()
    query, references, memory = arguments()
    query[0, 1] = torch.nan
    output = attention(query, references, memory, LEVELS)
    assert output[0, 1].isnan().all()
    output[0, 1] = 0
    assert output.isfinite().all()


def test_padding_is_read_as_zero_and_keeps_its_attention() -> None:
    attention, (query, references, memory) = module(), arguments()
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 10:] = True
    results = []
    for fill in (0.0, 100.0):
        filled = memory.masked_fill(padding[..., None], fill)
        results.append(attention(query, references, filled, LEVELS, padding))
    torch.testing.assert_close(results[0], results[1])
    everything = attention(query, references, memory, LEVELS, torch.ones_like(padding))
    torch.testing.assert_close(everything, attention.output_proj.bias.expand_as(everything))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_sampling_points_are_those_that_are_read(coordinates: int) -> None:
    attention, (query, references, memory) = module(), arguments(coordinates)
    points = attention.sampling_points(query, references, LEVELS)
    assert points.locations.shape == (2, 4, HEADS, len(SIZES), POINTS, 2)
    torch.testing.assert_close(points.weights.sum((-1, -2)), torch.ones(2, 4, HEADS))
    offsets = attention.sampling_offsets(query).view(points.locations.shape)
    for level, (height, width) in enumerate(SIZES):
        centre = references[:, :, level, :2][:, :, None, None]
        if coordinates == 2:
            reach = torch.tensor([1 / width, 1 / height])
        else:
            reach = references[:, :, level, 2:][:, :, None, None] / (2 * POINTS)
        expected = centre + offsets[:, :, :, level] * reach
        torch.testing.assert_close(points.locations[:, :, :, level], expected, rtol=1e-4, atol=1e-5)
    x, y = (points.locations * LEVELS.extent[:, None] - 0.5).flatten(3, 4).unbind(-1)
    value = attention.value_proj(memory).unflatten(-1, (HEADS, -1))
    read = attention.output_proj(weighted_samples(value, LEVELS, x, y, points.weights.flatten(3)))
    torch.testing.assert_close(read, attention(query, references, memory, LEVELS), rtol=1e-4, atol=1e-5)


def test_start_is_a_star_of_uniform_attention() -> None:
    attention = DeformableAttention(16, 4, 2, 3)
    query = torch.randn(1, 1, 16)
    levels = Levels.of([(8, 8), (4, 4)], torch.device("cpu"))
    points = attention.sampling_points(query, torch.full((1, 1, 2, 2), 0.5), levels)
    torch.testing.assert_close(points.weights, torch.full_like(points.weights, 1 / 6))
    cells = (points.locations - 0.5) * levels.extent[:, None]
    rays = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    expected = rays[:, None, None] * torch.arange(1.0, 4.0)[:, None]
    torch.testing.assert_close(cells[0, 0], expected.expand(-1, 2, -1, -1), rtol=0, atol=1e-5)


def test_autocast_rounds_values_and_not_locations() -> None:
    attention, (query, references, memory) = module(), arguments()
    exact = attention(query, references, memory, LEVELS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(query, references, memory, LEVELS)
        locations = attention.sampling_points(query, references, LEVELS).locations
    assert rounded.dtype == torch.bfloat16
    assert locations.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    rounded.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_nothing_is_kept_but_the_arguments() -> None:
    kept: list[int] = []
    tensors = [x.requires_grad_() for x in samples()]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        weighted_samples(tensors[0], LEVELS, *tensors[1:])
    assert sum(kept) == sum(x.numel() for x in tensors) + 3 * len(SIZES) * POINTS


@pytest.mark.slow
def test_compiled_equals_eager() -> None:
    attention, (query, references, memory) = module(), arguments(4)
    results = []
    for function in (attention, torch.compile(attention, fullgraph=True)):
        attention.zero_grad()
        output = function(query, references, memory, LEVELS)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in attention.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads must divide hidden_dim, not num_heads=3"):
        DeformableAttention(8, 3)
