"""The toy experiment: a higher CKA goes with a lower contrastive loss, and every pair is a problem of its own."""

import torch
import torch.nn.functional as F

from vwlmm.demo.cka_toy import BATCH, TEMPERATURE, ToyResult, contrastive_losses, main, random_pair, run


def test_over_40_random_pairs_the_loss_falls_as_the_cka_grows():
    result = run(num_pairs=40, seed=0, instances=60)
    assert result.cka.min() > 0
    assert result.cka.max() < 1
    assert result.correlation <= -0.8


def test_the_loss_is_the_symmetric_cross_entropy_of_each_pair():
    left, right = random_pair(3, torch.Generator().manual_seed(1))
    right = F.normalize(right, dim=-1)
    for i, loss in enumerate(contrastive_losses(left, right)):
        scores = F.normalize(left[i], dim=-1) @ right[i].T / TEMPERATURE
        own = torch.arange(BATCH)
        torch.testing.assert_close(loss, (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2)


def test_training_lowers_the_loss_of_every_pair():
    before, after = run(8, instances=10, steps=0), run(8, instances=10, steps=100)
    assert torch.equal(before.cka, after.cka)
    assert bool((after.loss < before.loss).all())


def test_the_correlation_is_pearsons():
    assert abs(ToyResult(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([3.0, 2.0, 1.0])).correlation + 1) < 1e-6


def test_the_command_writes_the_section_and_its_plot(tmp_path, capsys):
    assert main(["--pairs", "4", "--seeds", "2", "--instances", "3", "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "images/freeze_align_toy.png").stat().st_size > 1000
    assert "2 seeds, 4 new pairs each" in (tmp_path / "freeze_align_toy.md").read_text()
    assert capsys.readouterr().out.count("correlation") == 2
