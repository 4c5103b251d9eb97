"""The random numbers of a batch."""

import torch
from models import EVERYTHING, conditional, model, perturbed, seeded

from training.batches import micro_batches


def test_dropped_labels_are_the_null_label():
    x, y = torch.rand(64, 1, 8, 8) * 2 - 1, torch.arange(64) % 3
    m = conditional(label_dropout=1.0)
    assert torch.equal(m.get_loss((x, y), 4), m.get_loss(x, 4))
    assert not torch.equal(conditional(label_dropout=0.0).get_loss((x, y), 4), m.get_loss(x, 4))
    seen = []
    m = conditional()
    m.unet.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    for i in range(40):
        m.get_loss((x, y), i)
    labels = torch.stack(seen)
    assert 0.07 < float((labels == 3).float().mean()) < 0.13
    assert torch.equal(labels[labels != 3], y.repeat(40, 1)[labels != 3])


def test_an_unconditional_model_takes_no_notice_of_labels():
    x = torch.rand(8, 1, 8, 8) * 2 - 1
    assert torch.equal(model().get_loss((x, torch.arange(8)), 1), model().get_loss(x, 1))


def test_micro_batches_of_processes_are_those_of_the_whole_batch():
    x, y = torch.rand(8, 1, 8, 8, generator=seeded()) * 2 - 1, torch.arange(8) % 3
    m = perturbed(model(**EVERYTHING))
    whole = [m.get_loss(one, 5) for one in micro_batches(x, y, 4)]
    for rank in range(2):
        rows = slice(4 * rank, 4 * rank + 4)
        share = micro_batches(x[rows], y[rows], 2, rank=rank, world_size=2)
        losses = [m.get_loss(one, 5) for one in share]
        assert torch.equal(torch.stack(losses), torch.stack(whole[2 * rank : 2 * rank + 2]))
