"""Sections 2 and 3 of the paper: schedule, forward process, posterior, parameterizations,
Algorithms 1 and 2."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import model, predicts

from DiffusionModel import DiffusionModel


@pytest.mark.parametrize("T", [1, 2, 1000, 1500])
def test_schedule_is_indexed_as_in_the_paper(T):
    m = model(T=T)
    beta = np.concatenate([[0.0], np.linspace(1e-4, 0.02, T)])
    t = torch.arange(T + 1)
    assert m.beta(0) == 0
    assert m.alpha_bar(0) == 1
    np.testing.assert_allclose(m.beta(t), beta, rtol=1e-6)
    np.testing.assert_allclose(m.alpha(t), 1 - beta, rtol=1e-6)
    np.testing.assert_allclose(
        m.alpha_bar(t), np.cumprod(1 - beta), rtol=1e-6
    )  # alpha_bar(t) includes t
    assert m.alpha_bar(1) == m.alpha(1) == 1 - m.beta(1)
    # for an int t: in double precision
    assert [m.alpha_bar(u) for u in range(T + 1)] == np.cumprod(1 - beta).tolist()


def test_alpha_bar_at_the_end_is_the_papers():
    assert float(model().alpha_bar(1000)) == pytest.approx(4.0358e-5, rel=1e-4)


def test_tables_are_not_in_the_state_dict():
    assert all(name.startswith("unet.") for name in model().state_dict())


def test_schedule_forward_and_posterior_equal_diffusers_for_every_t():
    """diffusers in float64: in float32, its sqrt(1 - alpha_bar) is off by over 1e-6 at small t."""
    from diffusers import DDPMScheduler

    m = model()
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        prediction_type="sample",
    )
    t = torch.arange(1, 1001)
    assert (m.beta(t) - scheduler.betas).abs().max() <= 1e-6
    assert (m.alpha_bar(t) - scheduler.alphas_cumprod).abs().max() <= 1e-6
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod, scheduler.one = (
        scheduler.alphas.cumprod(0),
        torch.ones((), dtype=torch.float64),
    )
    x_0, eps = torch.rand(1000, 1, 2, 2) * 2 - 1, torch.randn(1000, 1, 2, 2)
    x_t = m.q_sample(x_0, t, eps)
    assert (x_t - scheduler.add_noise(x_0.double(), eps.double(), t - 1)).abs().max() <= 1e-6
    mean, variance = m.posterior(x_0, x_t, t, t - 1)
    for i in range(1000):
        torch.manual_seed(i)
        theirs = scheduler.step(
            x_0[i].double(), i, x_t[i].double()
        ).prev_sample  # its mean + sqrt(variance) z; no noise at the end
        torch.manual_seed(i)
        z = torch.randn(1, 2, 2, dtype=torch.float64) if i else 0.0
        assert (mean[i] + variance[i].sqrt() * z - theirs).abs().max() <= 1e-6 * max(
            1, float(theirs.abs().max())
        )


def test_posterior_is_bayes_rule_for_any_pair_of_times():
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): precisions add."""
    m = model()
    t, s = torch.tensor([2, 10, 500, 1000, 1000]), torch.tensor([1, 9, 3, 999, 1])
    x_0, x_t = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
    mean, variance = m.posterior(x_0, x_t, t, s)
    abar = np.cumprod(1 - np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)]))
    a_t, a_s = (torch.from_numpy(abar[u])[:, None, None, None] for u in (t.numpy(), s.numpy()))
    a = a_t / a_s
    precision = a / (1 - a) + 1 / (1 - a_s)
    expected = (a.sqrt() / (1 - a) * x_t + a_s.sqrt() / (1 - a_s) * x_0) / precision
    np.testing.assert_allclose(variance, 1 / precision, rtol=2e-5)
    np.testing.assert_allclose(mean, expected, atol=2e-6)


def test_q_sample_ends():
    m, x_0, eps = model(), torch.rand(2, 3, 5, 7) * 2 - 1, torch.randn(2, 3, 5, 7)
    assert torch.equal(m.q_sample(x_0, torch.tensor([0, 0]), eps), x_0)
    assert (m.q_sample(x_0, torch.tensor([1000, 1000]), eps) - eps).abs().max() < 0.01


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_denoise_undoes_target(parameterization):
    """With the target as the network's output, denoise gives x_0 back, at every t."""
    t = torch.arange(1, 1001)
    x_0, eps = torch.rand(1000, 1, 2, 2) * 2 - 1, torch.randn(1000, 1, 2, 2)
    m = predicts(None, parameterization=parameterization)
    m.output = m.target(x_0, eps, t)
    error = (m.denoise(m.q_sample(x_0, t, eps), t, clip=False).x0_hat - x_0).abs().amax((1, 2, 3))
    # With eps, x0_hat is divided by sqrt(alpha_bar), and so is its rounding error.
    assert (error * m._signal[t]).max() < 2e-6


def test_v_is_defined_as_by_salimans_and_ho():
    m, t = model(parameterization="v"), torch.tensor([300])
    x_0, eps = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    a = m.alpha_bar(t)
    assert torch.allclose(m.target(x_0, eps, t), a.sqrt() * eps - (1 - a).sqrt() * x_0, atol=1e-6)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_algorithm_2_line_4_is_the_posterior_without_clipping(variance):
    for t in (2, 3, 10, 437, 999, 1000):
        x_t, eps, z = (torch.randn(3, 1, 2, 2) for _ in range(3))
        m = predicts(eps, variance=variance)
        alpha, alpha_bar, before = m.alpha(t), m.alpha_bar(t), m.alpha_bar(t - 1)
        sigma2 = 1 - alpha
        if variance == "small":
            sigma2 = (1 - before) / (1 - alpha_bar) * (1 - alpha)
        mean = (x_t - (1 - alpha) / (1 - alpha_bar) ** 0.5 * eps) / alpha**0.5
        prediction = m.denoise(x_t, torch.full((3,), t), clip=False)
        ours = m.denoise_sample(x_t, t, z=z, prediction=prediction)
        assert (ours - mean - sigma2**0.5 * z).abs().max() < 1e-4


def test_the_last_step_adds_no_noise_and_uses_the_clipped_prediction():
    x, huge = torch.randn(3, 1, 2, 2), torch.full((3, 1, 2, 2), 1e6)
    m = predicts(torch.full((3, 1, 2, 2), 5.0), parameterization="x0")
    last = m.denoise_sample(x, 1, z=huge)
    # x0_hat of 5 was clipped to 1 before its use
    assert torch.allclose(last, torch.ones(3, 1, 2, 2), atol=1e-5)
    assert m.denoise_sample(x, 2, z=huge).abs().max() > 1e3


def test_a_reverse_step_draws_noise_by_default():
    m, x = model(T=20), torch.randn(3, 1, 8, 8)
    torch.manual_seed(5)
    ours = m.denoise_sample(x, 7)
    torch.manual_seed(5)
    assert torch.equal(ours, m.denoise_sample(x, 7, 6, torch.randn_like(x), "large"))


def test_the_network_counts_from_0():
    m, seen = model(), []
    m.unet.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    m(torch.randn(2, 1, 8, 8), torch.tensor([1, 1000]))
    assert seen[0].tolist() == [0, 999]


def training_draws(m: DiffusionModel, batches: int, count: int):
    """The t and x_t that training sees, with x_0 = 0."""
    seen = []
    m.forward = lambda x, t, *_: (seen.append((t, x)), torch.zeros_like(x))[1]
    losses = [m.get_loss(torch.zeros(count, 1, 8, 8), i) for i in range(batches)]
    return torch.cat([t for t, _ in seen]), torch.cat([x for _, x in seen]), losses


def test_t_is_uniform_on_1_to_T():
    t, _, _ = training_draws(model(T=4), 50, 64)
    count = torch.bincount(t, minlength=5)
    assert count[0] == 0
    assert len(count) == 5
    assert ((count[1:] - 800).abs() < 150).all()  # 6 standard deviations of 24.5


def test_noise_is_standard_normal_and_a_function_of_seed_and_step():
    m = model(T=2, beta_small=0.9999, beta_large=0.9999)  # x_t is nearly eps
    _, eps, losses = training_draws(m, 8, 64)
    assert abs(float(eps.mean())) < 0.03
    assert abs(float(eps.std()) - 1) < 0.03
    parts = eps.split(64)
    assert all(not torch.equal(parts[0], part) for part in parts[1:])
    assert len({float(loss) for loss in losses}) == 8
    torch.manual_seed(123)
    torch.randn(7)
    again = training_draws(model(T=2, beta_small=0.9999, beta_large=0.9999), 8, 64)[1]
    assert torch.equal(eps, again)
    assert not torch.equal(
        eps, training_draws(model(T=2, beta_small=0.9999, beta_large=0.9999, seed=1), 8, 64)[1]
    )


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_loss_is_the_mean_squared_error_against_the_target(parameterization):
    m, x_0, seen = model(parameterization=parameterization), torch.rand(4, 1, 8, 8) * 2 - 1, {}
    original = m.target
    m.target = lambda x, e, t: seen.setdefault("target", original(x, e, t))
    m.forward = lambda x, t, *_: seen.setdefault("output", torch.randn_like(x))
    loss = m.get_loss((x_0, torch.zeros(4)), 0)
    assert torch.allclose(loss, F.mse_loss(seen["output"], seen["target"]))
    assert torch.allclose(loss, m.get_loss(x_0, 0))  # a bare tensor is a batch, too


def test_optimizer_is_adam_with_linear_warm_up():
    conf = model(lr=1e-3, warmup=10).configure_optimizers(100)
    optimizer, schedule = conf["optimizer"], conf["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert isinstance(optimizer, torch.optim.Adam)
    np.testing.assert_allclose(rates, [1e-4 * min(i + 1, 10) for i in range(12)])


def test_hyper_parameters_rebuild_the_model():
    m = model(T=7, parameterization="v", class_names=("a", "b"))
    again = DiffusionModel(**m.hparams)
    assert dict(again.hparams) == dict(m.hparams)
    assert m.hparams["dropout"] == 0.0  # defaults are kept, too


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"parameterization": "velocity"}, "parameterization must be one of eps, x0, v, not 'velo"),
        ({"t_sampling": "x"}, "t_sampling must be one of uniform, stratified, lognormal, not 'x'"),
        ({"weighting": "snr"}, "weighting must be one of plain, min-snr, min-snr+1, p2, edm, not"),
        ({"variance": "fixed"}, "variance must be one of large, small, learned, not 'fixed'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, muon, not 'sgd'"),
        ({"lr_schedule": "step"}, "lr_schedule must be one of constant, linear, cosine, not 'st"),
    ],
)
def test_an_unknown_choice_is_refused(setting, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        model(**setting)
