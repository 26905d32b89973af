"""Changes against plain formulas in float64: scale, strength, DoRA on either axis, stacks, rows of fused weights."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from acestep_pack.acestep_core.lora.change import Change, Factors, Full, Hadamard, Kronecker, LowRank, merged
from golden_models import z

OUT, IN, RANK = 12, 8, 3
WEIGHT = z("weight", OUT, IN)
LOW_RANK = LowRank(z("up", OUT, RANK), z("down", RANK, IN))
FACTORS: dict[str, tuple[Factors, Tensor]] = {
    "LowRank": (LOW_RANK, torch.einsum("or,ri->oi", LOW_RANK.up.double(), LOW_RANK.down.double())),
    "Kronecker": (
        Kronecker(z("outer", 3, 2), z("inner", 4, 4)),
        torch.einsum("ab,cd->acbd", z("outer", 3, 2).double(), z("inner", 4, 4).double()).reshape(OUT, IN),
    ),
    "Hadamard": (
        Hadamard(z("u1", OUT, 2), z("d1", 2, IN), z("u2", OUT, 2), z("d2", 2, IN)),
        (z("u1", OUT, 2).double() @ z("d1", 2, IN).double()) * (z("u2", OUT, 2).double() @ z("d2", 2, IN).double()),
    ),
    "Full": (Full(z("full", OUT, IN)), z("full", OUT, IN).double()),
}
ROWS, COLUMNS = 1 + z("rows", OUT, 1).abs(), 1 + z("columns", 1, IN).abs()


def dora(matrix: Tensor, scale: float, strength: float, magnitude: Tensor) -> Tensor:
    """Return the weight of DoRA at a strength, a row or column at a time."""
    whole = WEIGHT.double() + scale * matrix
    result = whole.clone()
    for index, length in enumerate(magnitude.flatten().double()):
        line = (index,) if magnitude.shape[1] == 1 else (slice(None), index)
        result[line] = length * whole[line] / whole[line].square().sum().sqrt()
    return (1 - strength) * WEIGHT.double() + strength * result


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    error = (ours.double() - theirs.double()).abs().max()
    assert error <= tolerance, f"max error {error:.1e}"


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -2.0])
@pytest.mark.parametrize("kind", FACTORS)
def test_a_change_adds_scale_times_strength_times_its_matrix(kind: str, strength: float) -> None:
    factors, matrix = FACTORS[kind]
    assert factors.shape == (OUT, IN)
    assert_close(merged(WEIGHT, [(strength, Change(factors, 1.7))]), WEIGHT.double() + strength * 1.7 * matrix)


@pytest.mark.parametrize("magnitude", [ROWS, COLUMNS], ids=["rows", "columns"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -2.0])
@pytest.mark.parametrize("kind", FACTORS)
def test_dora_sets_the_length_of_rows_or_columns(kind: str, strength: float, magnitude: Tensor) -> None:
    factors, matrix = FACTORS[kind]
    change = Change(factors, 0.4, magnitude)
    assert_close(merged(WEIGHT, [(strength, change)]), dora(matrix, 0.4, strength, magnitude))


def test_dora_of_a_square_weight_tells_rows_from_columns() -> None:
    weight, factors = z("square", 6, 6), Full(torch.zeros(6, 6))
    lengths = torch.arange(1.0, 7.0)
    rows = merged(weight, [(1.0, Change(factors, 1.0, lengths[:, None]))])
    columns = merged(weight, [(1.0, Change(factors, 1.0, lengths[None]))])
    assert_close(rows.norm(dim=1), lengths)
    assert_close(columns.norm(dim=0), lengths)


def test_dora_leaves_a_row_of_zeros_at_zero() -> None:
    weight = WEIGHT.clone()
    weight[3] = 0
    change = Change(Full(torch.zeros(OUT, IN)), 1.0, ROWS)
    assert torch.equal(merged(weight, [(1.0, change)])[3], torch.zeros(IN))


STACK = [
    (0.7, Change(LOW_RANK, 2.0)),
    (-0.3, Change(FACTORS["Kronecker"][0], 0.5, ROWS)),
    (0.5, Change(FACTORS["Hadamard"][0], 1.0, COLUMNS)),
    (1.0, Change(FACTORS["Full"][0])),
]


def test_a_stack_is_the_sum_of_what_each_does_alone() -> None:
    alone = [merged(WEIGHT, [each]).double() - WEIGHT.double() for each in STACK]
    assert_close(merged(WEIGHT, STACK), WEIGHT.double() + sum(alone))


def test_the_order_of_a_stack_does_not_matter() -> None:
    expected = merged(WEIGHT, STACK)
    for order in itertools.permutations(STACK):
        assert_close(merged(WEIGHT, order), expected, 1e-6)


def test_no_changes_are_the_weight_bit_for_bit_and_the_weight_given_stays() -> None:
    before = WEIGHT.clone()
    assert torch.equal(merged(WEIGHT, []), WEIGHT)
    merged(WEIGHT, STACK)
    assert torch.equal(WEIGHT, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_weight_is_rounded_once(dtype: torch.dtype) -> None:
    weight = WEIGHT.to(dtype)
    assert torch.equal(merged(weight, STACK), merged(weight.float(), STACK).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_factors_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    narrow = LowRank(LOW_RANK.up.to(dtype), LOW_RANK.down.to(dtype))
    wide = LowRank(narrow.up.float(), narrow.down.float())
    assert torch.equal(merged(WEIGHT, [(1.0, Change(narrow))]), merged(WEIGHT, [(1.0, Change(wide))]))


def test_a_convolution_is_changed_as_the_matrix_of_its_kernels() -> None:
    weight, up, down = z("conv", 10, 6, 2), z("conv.up", 10, 4, 1), z("conv.down", 4, 6, 2)
    expected = weight.double() + torch.einsum("or,rik->oik", up[..., 0].double(), down.double())
    assert LowRank(up, down).shape == (10, 12)
    assert_close(merged(weight, [(1.0, Change(LowRank(up, down)))]), expected)
    outer, inner = z("conv.outer", 2, 3), z("conv.inner", 5, 2, 2)
    kron = torch.einsum("ab,cdk->acbdk", outer.double(), inner.double()).reshape(10, 6, 2)
    assert_close(merged(weight, [(1.0, Change(Kronecker(outer, inner)))]), weight.double() + kron)


@pytest.mark.parametrize("shape", [(5,), (1, 6, 7), (1, 1, 4)])
def test_a_difference_of_any_shape_is_added(shape: tuple[int, ...]) -> None:
    weight, difference = z("any", *shape), z("any.diff", *shape)
    assert_close(merged(weight, [(0.5, Change(Full(difference)))]), weight + 0.5 * difference)


@given(some.integers(1, OUT - 1), some.sampled_from(sorted(FACTORS)), some.booleans())
def test_rows_of_a_change_are_the_change_of_those_rows(at: int, kind: str, decomposed: bool) -> None:
    change = Change(FACTORS[kind][0], 0.6, ROWS if decomposed else None)
    whole = merged(WEIGHT, [(1.0, change)])
    parts = [merged(WEIGHT[a:b], [(1.0, change.rows(a, b))]) for a, b in ((0, at), (at, OUT))]
    assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("down", [torch.ones(4, 8), torch.ones(3)])
def test_factors_that_do_not_belong_together_are_refused(down: Tensor) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        LowRank(torch.ones(5, 3), down)
