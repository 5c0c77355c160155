"""Sinkhorn's plan has its marginals and is the optimum; linear CKA has its invariances."""

import pytest
import torch

from vwlmm.functional import linear_cka, rbf_cka, sinkhorn


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distribution(size: int, seed: int) -> torch.Tensor:
    return torch.softmax(random(size, seed=seed), -1)


def plain_sinkhorn(scores, epsilon, iterations, row_marginal, col_marginal):
    """Scaling of a matrix, outside the log domain."""
    kernel = (scores / epsilon).exp()
    u = torch.ones_like(row_marginal)
    for _ in range(iterations):
        v = col_marginal / (kernel.T @ u)
        u = row_marginal / (kernel @ v)
    return u[:, None] * kernel * v


def test_plan_has_both_marginals_uniform_by_default():
    plan = sinkhorn(random(6, 9), epsilon=0.5, iterations=200)
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((9,), 1 / 9, dtype=torch.float64), atol=1e-9, rtol=0)


def test_plan_has_both_given_marginals():
    rows, cols = distribution(6, 1), distribution(9, 2)
    plan = sinkhorn(random(6, 9), epsilon=0.5, iterations=200, row_marginal=rows, col_marginal=cols)
    torch.testing.assert_close(plan.sum(1), rows, atol=1e-12, rtol=0)
    torch.testing.assert_close(plan.sum(0), cols, atol=1e-9, rtol=0)


def test_row_marginal_is_exact_after_one_iteration():
    plan = sinkhorn(random(6, 9), epsilon=0.05, iterations=1)
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (plan.sum(0) - 1 / 9).abs().max() > 1e-3


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_log_domain_equals_plain_scaling(iterations):
    scores, rows, cols = random(6, 9), distribution(6, 1), distribution(9, 2)
    ours = sinkhorn(scores, epsilon=0.3, iterations=iterations, row_marginal=rows, col_marginal=cols)
    torch.testing.assert_close(ours, plain_sinkhorn(scores, 0.3, iterations, rows, cols), atol=1e-14, rtol=1e-10)


def test_plan_is_the_optimum_of_the_regularised_problem():
    scores, epsilon = random(5, 7), 0.4
    plan = sinkhorn(scores, epsilon=epsilon, iterations=500)

    def objective(candidate: torch.Tensor) -> float:
        return ((candidate * scores).sum() - epsilon * (candidate * candidate.log()).sum()).item()

    for seed in range(20):  # any move that keeps both marginals makes it worse
        move = random(5, 7, seed=seed + 10)
        move = move - move.mean(0) - move.mean(1, keepdim=True) + move.mean()
        assert objective(plan + 1e-3 * move / move.abs().max() * plan.min()) < objective(plan)


def test_cosines_over_a_hundredth_do_not_overflow_in_fp32():
    scores = torch.nn.functional.normalize(random(8, 16, dtype=torch.float32)) @ torch.eye(16)
    scores[0, 0] = 1.0  # exp(1 / 0.01) is infinite in fp32
    plan = sinkhorn(scores, epsilon=0.01, iterations=20)
    assert plan.dtype == torch.float32
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(1), torch.full((8,), 1 / 8), atol=1e-5, rtol=1e-5)


def test_a_word_without_mass_is_never_assigned():
    cols = torch.tensor([0.5, 0.0, 0.5]).double()
    plan = sinkhorn(random(4, 3), epsilon=0.5, iterations=100, col_marginal=cols)
    assert (plan[:, 1] == 0).all()
    torch.testing.assert_close(plan.sum(0), cols, atol=1e-9, rtol=0)


def test_bf16_scores_are_solved_in_fp32():
    scores = random(4, 6).bfloat16()
    plan = sinkhorn(scores, epsilon=0.1, iterations=5)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan, sinkhorn(scores.float(), epsilon=0.1, iterations=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(3)}, "scores is a matrix"),
        ({"scores": torch.zeros(0, 3)}, "at least one of each"),
        ({"epsilon": 0.0}, "epsilon is positive"),
        ({"iterations": 0}, "iterations is at least 1"),
        ({"row_marginal": torch.ones(3) / 3}, "one mass for each of the 2 entries"),
        ({"col_marginal": torch.ones(3)}, "a sum of 3"),
        ({"col_marginal": torch.tensor([1.5, -0.5, 0.0])}, "no negative entry"),
    ],
)
def test_sinkhorn_refuses_what_cannot_be_solved(change, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(**({"scores": torch.zeros(2, 3), "epsilon": 0.1, "iterations": 3} | change))


def test_cka_of_features_with_themselves_is_1():
    torch.testing.assert_close(linear_cka(random(50, 8), random(50, 8)).item(), 1.0)


def test_cka_does_not_see_rotation_scale_or_shift():
    x, y = random(50, 8), random(50, 5, seed=1)
    rotation = torch.linalg.qr(random(8, 8, seed=2))[0]
    torch.testing.assert_close(linear_cka(3 * x @ rotation + 7, y), linear_cka(x, y))
    torch.testing.assert_close(linear_cka(1e-8 * x, y), linear_cka(x, y))


def test_cka_is_symmetric_and_sees_other_linear_maps():
    x, y = random(50, 8), random(50, 5, seed=1)
    torch.testing.assert_close(linear_cka(x, y), linear_cka(y, x))
    assert linear_cka(x, x * torch.linspace(0.1, 3, 8)) < 0.99


def test_cka_equals_the_kernel_form_with_centring():
    x, y = random(30, 8), random(30, 5, seed=1)
    centre = torch.eye(30).double() - 1 / 30
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741
    expected = (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()
    torch.testing.assert_close(linear_cka(x, y), expected)


def test_cka_of_unrelated_features_is_small():
    assert linear_cka(random(4000, 8), random(4000, 8, seed=1)) < 0.01


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_cka_of_features_that_do_not_vary_is_an_error(constant):
    with pytest.raises(ValueError, match="y does not vary over its 50 examples"):
        linear_cka(random(50, 8), torch.full((50, 4), constant))


def test_cka_wants_the_same_examples():
    with pytest.raises(ValueError, match="got 50 and 49"):
        linear_cka(random(50, 8), random(49, 8))
    with pytest.raises(ValueError, match="x is a matrix"):
        linear_cka(random(50), random(50, 8))


def test_rbf_cka_equals_the_textbook_form():
    x, y = random(30, 8), random(30, 5, seed=1)
    centre = torch.eye(30).double() - 1 / 30
    kernels = []
    for features in (x, y):
        distances = torch.cdist(features, features)
        median = torch.nn.functional.pdist(features).median()
        kernels.append(centre @ torch.exp(-(distances**2) / (2 * (0.8 * median) ** 2)) @ centre)
    k, l = kernels  # noqa: E741
    expected = (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()
    torch.testing.assert_close(rbf_cka(x, y, bandwidth=0.8), expected)


def test_rbf_cka_does_not_see_rotation_scale_or_shift():
    x, y = random(50, 8), random(50, 5, seed=1)
    rotation = torch.linalg.qr(random(8, 8, seed=2))[0]
    torch.testing.assert_close(rbf_cka(3 * x @ rotation + 7, y), rbf_cka(x, y))
    torch.testing.assert_close(rbf_cka(x, y), rbf_cka(y, x))
    torch.testing.assert_close(rbf_cka(x, x).item(), 1.0)


def test_rbf_cka_sees_a_likeness_that_is_not_linear():
    angle = torch.rand(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6.28
    line, even = angle - 3.14, (angle - 3.14) ** 2  # the square of a centred value is not correlated with it
    assert linear_cka(line, even) < 0.05
    assert rbf_cka(line, even, bandwidth=0.3) > 0.2


def test_rbf_cka_with_many_equal_examples_takes_its_width_from_those_that_differ():
    x = torch.cat([torch.zeros(40, 3).double(), random(10, 3)])
    y = torch.cat([torch.ones(40, 4).double(), random(10, 4, seed=1)])
    assert 0 < rbf_cka(x, y) < 1


def test_rbf_cka_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="rbf_cka compares the same examples, got 50 and 49"):
        rbf_cka(random(50, 8), random(49, 8))
    with pytest.raises(ValueError, match="bandwidth is a positive multiple"):
        rbf_cka(random(50, 8), random(50, 8), bandwidth=0.0)
    with pytest.raises(ValueError, match="does not vary"):
        rbf_cka(random(50, 8), torch.ones(50, 4))
