"""Choices of training beyond the paper, each against a second derivation or a limit in which it is something known."""

import math

import numpy as np
import pytest
import torch
from models import conditional, model, predicts, spread_out

import DiffusionModel as DiffusionModel_module
from checkpoints import posthoc_ema
from diffusion import augment, likelihood, objective, schedules
from diffusion.denoiser import Prediction
from diffusion.draws import Draws
from DiffusionModel import DiffusionModel
from runtime.randomness import Purpose
from sampling.guidance import Guided
from sampling.noise import Noise
from sampling.samplers import SAMPLERS, ddpm, sample
from sampling.time_grid import time_grid
from training.batches import micro_batches

T = torch.arange(1, 1001)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_errors(m: DiffusionModel, x_0: torch.Tensor, step: int) -> tuple:
    """t (B,) of a training step and the squared errors (B,) at it, by Algorithm 1 written out."""
    draws = Draws(x_0, (m.seed, Purpose.TRAIN, step, 0))
    t, eps = draws.times("uniform", m._ratio[1:]), draws.normal()
    output = m(m.q_sample(x_0, t, eps), t)[:, : x_0.shape[1]]
    return t, ((output - m.target(x_0, eps, t)) ** 2).mean((1, 2, 3))


# ---- schedules -------------------------------------------------------------------------------------------------------


def test_cosine_equals_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2").betas
    assert np.abs(schedules.betas("cosine", 1000) - theirs.numpy()).max() < 1e-6


def test_sigmoid_falls_from_1_to_0_and_is_symmetric():
    alpha_bar = np.cumprod(1 - schedules.betas("sigmoid", 1000))
    expected = (1 / (1 + np.exp(6 * np.arange(1, 1001) / 1000 - 3)) - 1 / (1 + np.e**3)) / (
        1 / (1 + np.e**-3) - 1 / (1 + np.e**3)
    )
    np.testing.assert_allclose(alpha_bar[:-1], expected[:-1], atol=1e-12)
    assert alpha_bar[499] == pytest.approx(0.5, abs=1e-9)
    assert 0 < alpha_bar[-1] < 1e-5  # the last beta is cut at 0.999


def test_a_table_of_betas_is_the_schedule_it_was_made_from(tmp_path):
    (tmp_path / "betas.txt").write_text(
        "\n".join(map(repr, schedules.betas("linear", 50).tolist()))
    )
    table = schedules.read_betas(str(tmp_path / "betas.txt"))
    assert model(T=50, betas=table).schedule == model(T=50).schedule
    assert DiffusionModel(**model(T=50, betas=table).hparams).schedule == model(T=50).schedule
    with pytest.raises(ValueError, match="50 numbers, not T = 51"):
        model(T=51, betas=table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "unknown schedule .*cosin.*did you mean cosine"),
        ("0.1 x", "cannot be read"),
        ("", "must hold"),
        ("0.1 1.5", "numbers between 0 and 1"),
    ],
)
def test_bad_schedules_are_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "cosin").write_text(text)
    with pytest.raises(ValueError, match=said):
        schedules.read_betas("cosin" if text is None else str(tmp_path / "cosin"))


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_zero_terminal_snr_equals_diffusers_and_leaves_noise_alone(schedule):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    beta = schedules.betas(schedule, 1000)
    ours = schedules.zero_terminal_snr(beta)
    assert np.abs(ours - rescale_zero_terminal_snr(torch.from_numpy(beta)).numpy()).max() < 1e-6
    m = model(schedule=schedule, zero_terminal_snr=True, parameterization="v")
    assert m.alpha_bar(1000) == 0
    assert m.alpha_bar(1) == pytest.approx(1 - beta[0], abs=1e-12)
    eps = torch.randn(2, 1, 4, 4)
    assert torch.equal(m.q_sample(torch.ones(2, 1, 4, 4), torch.tensor([1000, 1000]), eps), eps)
    with pytest.raises(ValueError, match="no trace of the image at t = 1000"):
        model(schedule=schedule, zero_terminal_snr=True)


@pytest.mark.parametrize(
    "schedule", [{"schedule": "cosine"}, {"schedule": "sigmoid"}, {"zero_terminal_snr": True}]
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_finds_a_known_image_with_every_schedule(sampler, schedule):
    """A network that knows the only image there is: whatever the path, it ends there."""
    m, image = (
        model(parameterization="x0", **schedule),
        torch.rand(1, 8, 8, generator=random()) * 2 - 1,
    )
    m.forward = lambda x, t, *_: image.expand_as(x)
    noise = Noise(0, range(2), (1, 8, 8))
    *_, (t, x, _) = sample(sampler, m, noise(), time_grid(m, 7, 1000, "log-snr"), noise, "small")
    assert t == 0
    assert (x - image).abs().max() < 1e-5


# ---- weights and times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["min-snr", "p2", "edm"])
def test_a_weighting_is_the_same_whatever_the_network_predicts(kind):
    """Networks that predict the same x_0 have the same loss, in eps, x0 and v."""
    x_0, eps, wrong = (
        torch.rand(999, 1, 2, 2) * 2 - 1,
        torch.randn(999, 1, 2, 2),
        torch.rand(999, 1, 2, 2),
    )
    losses, t = [], T[:-1]
    for parameterization in ("eps", "x0", "v"):
        m = predicts(None, parameterization=parameterization)
        signal, sigma = (u.double() for u in m.signal_and_sigma(t))
        x_t = signal * x_0 + sigma * eps
        output = {
            "eps": (x_t - signal * wrong) / sigma,
            "x0": wrong.double(),
            "v": (signal * x_t - wrong) / sigma,
        }[parameterization]
        target = {"eps": eps, "x0": x_0, "v": signal * eps - sigma * x_0}[parameterization]
        losses.append(
            objective.weight(kind, parameterization, m._snr[t])
            * ((output - target) ** 2).mean((1, 2, 3))
        )
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-3)


def test_weights_are_those_of_their_papers():
    snr, one = torch.tensor([0.01, 1.0, 5.0, 80.0]), torch.ones(4)
    weight = objective.weight
    assert torch.equal(weight("plain", "eps", snr), one)
    assert torch.allclose(
        weight("min-snr", "eps", snr), torch.tensor([1.0, 1.0, 1.0, 5 / 80])
    )  # min(snr, 5) / snr
    assert torch.allclose(weight("min-snr", "v", snr), snr.clamp(max=5) / (snr + 1))
    assert torch.allclose(weight("p2", "eps", snr), 1 / (1 + snr))
    sigma = snr**-0.5
    c_out = sigma * 0.5 / (sigma**2 + 0.25) ** 0.5  # table 1, EDM
    assert torch.allclose(weight("edm", "x0", snr) * c_out**2, one)


def test_a_weighted_loss_is_the_weighted_mean_of_the_plain_errors():
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    t, error = plain_errors(model(), x, 5)
    weighted = model(weighting="min-snr").get_loss(x, 5)
    assert torch.allclose(
        weighted, (error * objective.weight("min-snr", "eps", model()._snr[t])).mean()
    )
    assert not torch.allclose(weighted, error.mean())


def test_stratified_times_are_spread_over_the_batch_and_uniform():
    sigma = model()._ratio[1:]
    t = torch.stack(
        [objective.draw_times("stratified", 50, sigma, random(i)) for i in range(400)]
    )  # (400,50)
    for row in t:
        assert ((row.sort().values - 1) // 20).tolist() == list(range(50))  # one in each twentieth
    assert t.min() == 1
    assert t.max() == 1000
    assert (
        (torch.bincount(t[:, 7], minlength=1001)[1:].view(10, 100).sum(1) - 40).abs() < 40
    ).all()  # each alone is uniform


def test_lognormal_times_have_the_mean_and_spread_of_edm():
    m = model(schedule="cosine")
    t = objective.draw_times("lognormal", 20_000, m._ratio[1:], random())
    log_sigma = m._ratio[t].log()
    assert abs(float(log_sigma.mean()) + 1.2) < 0.03
    assert abs(float(log_sigma.std()) - 1.2) < 0.03
    alone = objective.draw_times("lognormal", 50, m._ratio[1:], random(), mean=0.0, std=0.0)
    assert set(alone.tolist()) == {
        int((m._ratio[1:].log()).abs().argmin()) + 1
    }  # nearest to sigma = 1


@pytest.mark.parametrize("kind", ["stratified", "lognormal"])
def test_only_training_draws_its_own_times(kind):
    m, plain, x = model(t_sampling=kind), model(), torch.zeros(64, 1, 8, 8)
    batch = (x, torch.zeros(64, dtype=torch.long))
    assert torch.equal(m.validation_step(batch, 0)["t"], plain.validation_step(batch, 0)["t"])
    draws = [Draws(x, (0, Purpose.TRAIN, 0)) for _ in range(2)]
    own, uniform = draws[0].times(kind, m._ratio[1:]), draws[1].times("uniform", m._ratio[1:])
    assert not torch.equal(own, uniform)
    spread_out(m)
    assert not torch.equal(m.get_loss(x + 1, 0), spread_out(plain).get_loss(x + 1, 0))


# ---- learned variance --------------------------------------------------------------------------------------------------


def test_the_decoder_is_a_distribution_over_256_values():
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, log_variance in (
        (0.0, -2.0),
        (0.3, -9.0),
        (-0.99, -8.0),
        (1.2, -6.0),
        (0.001, -14.0),
    ):
        log_p = likelihood.decoder_log_likelihood(
            values, torch.tensor(mean), torch.tensor(log_variance)
        )
        assert abs(float(log_p.exp().sum()) - 1) < 1e-5
        normal = torch.distributions.Normal(
            torch.tensor(mean, dtype=torch.float64), math.exp(log_variance / 2)
        )
        inside = values[1:-1]
        naive = normal.cdf(inside + 1 / 255) - normal.cdf(inside - 1 / 255)
        assert (log_p[1:-1].exp() - naive).abs().max() < 1e-6
    far = likelihood.decoder_log_likelihood(
        torch.tensor(-1.0), torch.tensor(1.0), torch.tensor(-8.0)
    )
    assert -10_000 < float(far) < -1000  # where a difference of two 1s would be log(0)


def test_kl_equals_torchs():
    a, b, c, d = torch.randn(4, 50, generator=random(), dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a, (b / 2).exp()), normal(c, (d / 2).exp()))
    assert torch.allclose(likelihood.gaussian_kl(a, b, c, d), expected)


def learned(**settings) -> DiffusionModel:
    return spread_out(model(variance="learned", **settings))


def test_the_bound_equals_a_slow_loop():
    m, x_0 = learned(T=20), torch.randint(0, 256, (20, 1, 8, 8), generator=random()) / 127.5 - 1
    t, eps = torch.arange(1, 21), torch.randn(20, 1, 8, 8, generator=random(1))
    x_t = m.q_sample(x_0, t, eps)
    output = m(x_t, t)
    ours = likelihood.learned_variance_bound(m, output, x_0, x_t, t)
    beta = [0.0, *schedules.betas("linear", 20).tolist()]
    abar = np.cumprod(1 - np.array(beta))
    normal = torch.distributions.Normal
    for i in range(20):
        k, x, first, second = i + 1, x_t[i].double(), output[i, :1].double(), output[i, 1:].double()

        def small(k):
            return beta[k] * (1 - abar[k - 1]) / (1 - abar[k])

        def mean(x_0, x=x, k=k):
            return (
                abar[k - 1] ** 0.5 * beta[k] * x_0 + (1 - beta[k]) ** 0.5 * (1 - abar[k - 1]) * x
            ) / (1 - abar[k])

        x0_hat = ((x - (1 - abar[k]) ** 0.5 * first) / abar[k] ** 0.5).clamp(-1, 1)
        share = (second + 1) / 2
        spread = (share * math.log(beta[k]) + (1 - share) * math.log(small(max(k, 2)))).exp().sqrt()
        if k > 1:
            term = torch.distributions.kl_divergence(
                normal(mean(x_0[i].double()), small(k) ** 0.5), normal(mean(x0_hat), spread)
            )
        else:
            p, value = normal(mean(x0_hat), spread), x_0[i].double()
            low = torch.where(value < -0.999, 0.0, p.cdf(value - 1 / 255))
            high = torch.where(value > 0.999, 1.0, p.cdf(value + 1 / 255))
            term = -(high - low).clamp(min=1e-300).log()
        assert float(ours[i]) == pytest.approx(float(term.mean()) / math.log(2), rel=2e-3), k


def test_the_hybrid_loss_adds_the_bound_which_only_the_variance_learns_from(monkeypatch):
    m, x_0 = learned(), torch.rand(8, 1, 8, 8) * 2 - 1
    t, eps = (
        torch.randint(1, 1001, (8,), generator=random()),
        torch.randn(8, 1, 8, 8, generator=random()),
    )
    x_t = m.q_sample(x_0, t, eps)
    output = m(x_t, t).detach().requires_grad_()
    likelihood.learned_variance_bound(m, output, x_0, x_t, t).sum().backward()
    assert output.grad is not None
    assert output.grad[:, :1].abs().max() == 0
    assert output.grad[:, 1:].abs().max() > 0
    _, plain = plain_errors(m, x_0, 3)
    monkeypatch.setattr(
        DiffusionModel_module, "learned_variance_bound", lambda *_: torch.full((8,), 7.0)
    )
    assert torch.allclose(m.get_loss(x_0, 3), plain.mean() + 1e-3 * 1000 * 7.0)


def test_a_step_with_learned_variance_equals_diffusers():
    from diffusers import DDPMScheduler

    m, x = learned(), torch.randn(3, 1, 8, 8, generator=random())
    theirs = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=True,
        variance_type="learned_range",
    )
    for t in (1000, 437, 2, 1):
        z = torch.randn(x.shape, generator=random(t))
        output = m(x, torch.full((3,), t))
        expected = theirs.step(output, t - 1, x, generator=random(t)).prev_sample
        assert torch.allclose(m.denoise_sample(x, t, z=z), expected, atol=1e-4), t
        *_, (_, ours, _) = ddpm(m, x, [t, t - 1], lambda z=z: z, "learned")
        assert torch.allclose(ours, expected, atol=1e-4), t


@pytest.mark.parametrize(("share", "variance"), [(1.0, "large"), (0.0, "small")])
def test_learned_variance_ends_at_the_two_of_the_paper(share, variance):
    m, x = learned(), torch.randn(2, 1, 8, 8)

    predict = m.denoise
    m.denoise = lambda x, t: Prediction(predict(x, t).x0_hat, torch.full_like(x, share))
    for steps in (13, 999):
        runs = []
        for kind in ("learned", variance):
            noise = Noise(0, range(2), (1, 8, 8))
            runs.append(
                [x_t for _, x_t, _ in ddpm(m, noise(), time_grid(m, steps, 1000)[:6], noise, kind)]
            )
        for a, b in zip(*runs):
            assert torch.allclose(a, b, atol=1e-4)
    assert x.shape == m.denoise(x, torch.tensor([5, 5])).x0_hat.shape


# ---- augmentation ------------------------------------------------------------------------------------------------------


IMAGES = torch.rand(4, 3, 16, 16, generator=random()) * 2 - 1


def only(**done) -> torch.Tensor:
    names = ["mirror", "flip", "size", "turn", "stretch", "direction", "right", "down"]
    row = torch.zeros(8)
    for name, value in done.items():
        row[names.index(name)] = value
    return row.repeat(4, 1)


def test_nothing_done_is_the_image_and_the_label_0():
    x, label = augment.augmented(IMAGES, augment.draw(4, 0.0, random()))
    assert torch.equal(x, IMAGES)
    assert torch.equal(label, torch.zeros(4, 9))


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ({"mirror": 1}, IMAGES.flip(3)),
        ({"flip": 1}, IMAGES.flip(2)),
        ({"turn": math.pi}, IMAGES.flip(2, 3)),
        ({"turn": math.pi / 2}, IMAGES.rot90(-1, (2, 3))),
        ({"mirror": 1, "turn": math.pi / 2}, IMAGES.flip(3).rot90(-1, (2, 3))),
    ],
)
def test_transformations_that_move_pixels_onto_pixels(done, expected):
    x, _ = augment.augmented(IMAGES, only(**done))
    assert torch.allclose(x, expected, atol=1e-4)


def test_shifts_and_sizes():
    x, _ = augment.augmented(IMAGES, only(right=3 / 16, down=1 / 16))
    assert torch.allclose(x[:, :, 1:, 3:], IMAGES[:, :, :-1, :-3], atol=1e-4)
    ramp = torch.linspace(-0.5, 0.5, 16).expand(4, 3, 16, 16)
    x, _ = augment.augmented(ramp, only(size=-1.0))  # half the size: twice as steep
    assert torch.allclose(x[:, :, :, 6:10], 2 * ramp[:, :, :, 6:10], atol=1e-3)
    x, _ = augment.augmented(ramp, only(stretch=1.0))  # twice as wide, half as high
    assert torch.allclose(
        x[:, :, :, 5:11], ramp[:, :, :, 5:11] / 2, atol=0.005
    )  # bicubic is not quite linear


def test_each_label_says_all_that_was_done():
    done = augment.draw(500, 0.5, random())
    x, label = augment.augmented(torch.rand(500, 1, 8, 8, generator=random()), done)
    assert len(label.unique(dim=0)) > 400
    turn = torch.atan2(label[:, 4], label[:, 3] + 1)
    stretch, direction = (
        label[:, 5:7].norm(dim=1) * augment.STRETCH,
        torch.atan2(label[:, 6], label[:, 5]) / 2,
    )
    again = torch.stack(
        [
            label[:, 0],
            label[:, 1],
            label[:, 2] * augment.SCALE,
            turn,
            stretch,
            direction,
            label[:, 7] * augment.SHIFT,
            label[:, 8] * augment.SHIFT,
        ],
        dim=1,
    )  # a stretch by -s along is one by s across
    back, _ = augment.augmented(torch.rand(500, 1, 8, 8, generator=random()), again)
    assert (back - x).abs().max() < 1e-3
    applied = (done != 0).float().mean(0)
    assert ((applied - torch.tensor([0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])).abs() < 0.08).all()


def test_the_network_is_told_in_training_and_samples_without():
    m, x = spread_out(model(augment=1.0)), torch.rand(6, 1, 8, 8) * 2 - 1
    seen = []
    m.unet.register_forward_pre_hook(
        lambda _, args: seen.append(args[3] if len(args) > 3 else None)
    )
    m.get_loss(x, 0)
    m.validation_step((x, torch.zeros(6, dtype=torch.long)), 0)
    m.denoise(x, torch.full((6,), 500))
    assert seen[0].shape == (6, 9)
    assert (seen[0] != 0).any()
    assert seen[1] is seen[2] is None
    t = torch.full((6,), 3)
    assert torch.equal(m.unet(x, t, None, torch.zeros(6, 9)), m.unet(x, t))
    assert not torch.allclose(m.unet(x, t, None, seen[0]), m.unet(x, t))


# ---- labels and guidance -----------------------------------------------------------------------------------------------


def test_hidden_labels_are_no_labels():
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


def test_guidance_is_a_line_through_without_and_with():
    m, x, t, y = (
        conditional(),
        torch.randn(4, 1, 8, 8),
        torch.full((4,), 600),
        torch.tensor([0, 1, 2, 0]),
    )
    without = m.denoise(x, t, clip=False).x0_hat
    with_label = m.denoise(x, t, y, clip=False).x0_hat
    assert (without - with_label).abs().max() > 1e-3
    for scale, expected in (
        (0.0, without),
        (1.0, with_label),
        (3.0, without + 3 * (with_label - without)),
    ):
        assert torch.allclose(
            Guided(m, y, scale, clip=False).denoise(x, t).x0_hat, expected, atol=1e-5
        )
        assert torch.allclose(
            Guided(m, y, scale).denoise(x, t).x0_hat, expected.clamp(-1, 1), atol=1e-5
        )
    assert torch.equal(Guided(m).denoise(x, t).x0_hat, without.clamp(-1, 1))
    signal, sigma = m.signal_and_sigma(t)
    eps, eps_y, guided = (
        (x - signal * x_0) / sigma
        for x_0 in (without, with_label, Guided(m, y, 3.0, clip=False).denoise(x, t).x0_hat)
    )
    assert torch.allclose(
        guided, (1 + 2) * eps_y - 2 * eps, atol=1e-4
    )  # Eq. 6, Ho & Salimans 2022, with w = 2


def test_guidance_applies_in_its_interval_alone():
    m, x, y = conditional(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    guided = Guided(m, y, 3.0, interval=(100, 800))
    for t, inside in ((1, False), (99, False), (100, True), (800, True), (801, False)):
        at = torch.full((4,), t)
        assert torch.allclose(
            guided.denoise(x, at).x0_hat,
            Guided(m, y, 3.0 if inside else 1.0).denoise(x, at).x0_hat,
            atol=1e-6,
        )


def test_guidance_with_a_learned_variance_takes_the_variance_of_the_label():
    m, x, t, y = (
        conditional(variance="learned"),
        torch.randn(4, 1, 8, 8),
        torch.full((4,), 600),
        torch.tensor([0, 1, 2, 0]),
    )
    share = Guided(m, y, 3.0).denoise(x, t).share
    assert torch.allclose(share, m.denoise(x, t, y).share, atol=1e-6)


def test_labels_that_the_model_does_not_know_are_refused():
    with pytest.raises(ValueError, match="3 classes"):
        Guided(conditional(), torch.tensor([3]))
    with pytest.raises(ValueError, match="no classes"):
        Guided(model(), torch.tensor([0]))


# ---- averages chosen afterwards ------------------------------------------------------------------------------------------


def profile(steps: int, total: int, exponent: float) -> np.ndarray:
    """What the weights after each of `total` steps count in the average kept by `decay` up to `steps`."""
    kept = np.zeros(total)
    for step in range(1, steps + 1):
        kept *= posthoc_ema.decay(step, exponent)
        kept[step - 1] += 1 - posthoc_ema.decay(step, exponent)
    return kept


def test_the_exponents_are_those_of_edm2():
    assert posthoc_ema.gamma(0.05) == pytest.approx(16.97, abs=0.01)
    assert posthoc_ema.gamma(0.10) == pytest.approx(6.94, abs=0.01)
    for length in (0.03, 0.1, 0.2):
        kept, at = profile(5000, 5000, posthoc_ema.gamma(length)), np.arange(1, 5001) / 5000
        mean = (kept * at).sum()
        assert kept.sum() == pytest.approx(1)
        assert (kept * (at - mean) ** 2).sum() ** 0.5 == pytest.approx(length, rel=0.01)


@pytest.mark.parametrize(
    ("length", "error"),
    [(0.05, 1e-9), (0.10, 1e-9), (0.03, 0.15), (0.07, 0.02), (0.15, 0.05), (0.2, 0.1)],
)
def test_a_combination_of_snapshots_is_the_average_asked_for(length, error):
    steps, exponents = (
        range(250, 2001, 250),
        [posthoc_ema.gamma(kept) for kept in posthoc_ema.LENGTHS],
    )
    snapshots = [(step, exponent) for step in steps for exponent in exponents]
    factors, said = posthoc_ema.combination(snapshots, (2000, posthoc_ema.gamma(length)))
    made = factors @ np.stack([profile(step, 2000, exponent) for step, exponent in snapshots])
    wanted = profile(2000, 2000, posthoc_ema.gamma(length))
    assert factors.sum() == pytest.approx(1)
    assert np.linalg.norm(made - wanted) < error * np.linalg.norm(wanted)
    assert said == pytest.approx(np.linalg.norm(made - wanted) / np.linalg.norm(wanted), abs=0.01)


# ---- all of them together --------------------------------------------------------------------------------------------------


EVERYTHING = dict(
    schedule="cosine",
    zero_terminal_snr=True,
    parameterization="v",
    variance="learned",
    weighting="edm",
    t_sampling="stratified",
    augment=0.5,
    classes=3,
    label_dropout=0.5,
)


def test_the_shares_of_processes_are_one_batch():
    x, y = torch.rand(8, 1, 8, 8, generator=random()) * 2 - 1, torch.arange(8) % 3
    m = spread_out(model(**EVERYTHING))
    whole = m.get_loss((x, y), 5)
    for parts in (2, 4, 8):
        losses = [m.get_loss(part, 5) for part in micro_batches(x, y, parts)]
        assert torch.allclose(torch.stack(losses).mean(), whole, rtol=1e-4)
    one_rank = [m.get_loss(part, 5) for part in micro_batches(x[4:], y[4:], 2, rank=1, world=2)]
    of_four = [m.get_loss(part, 5) for part in micro_batches(x, y, 4)]
    assert torch.equal(torch.stack(one_rank), torch.stack(of_four[2:]))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_a_model_with_everything(sampler):
    m = spread_out(model(**EVERYTHING))
    noise = Noise(0, range(2), (1, 8, 8))
    *_, (_, x, _) = sample(
        sampler,
        Guided(m, torch.tensor([0, 2]), 2.0),
        noise(),
        time_grid(m, 9, 1000),
        noise,
        m.variance,
    )
    assert x.isfinite().all()
    assert x.abs().max() <= 1 + 1e-5 or sampler == "ddpm"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(T=1, zero_terminal_snr=True, parameterization="v"), "must fall"),
        (dict(T=2, betas=(1e-17, 0.5)), "must fall"),
        (
            dict(zero_terminal_snr=True, parameterization="v", weighting="min-snr"),
            "choose plain or edm",
        ),
        (dict(T=500, beta_small=0.5, beta_large=0.9, parameterization="v"), "no trace"),
    ],
)
def test_betas_that_cannot_be_trained_with_are_refused(settings, said):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=said):
        model(**settings)
