"""The training objective: the distribution of t, and the weight of the error at each t.

    t = draw_times("uniform", 128, ratio, generator)        # (B,) in 1..T
    loss = (weight("min-snr", "v", snr) * squared_error).mean()

snr is alpha_bar(t) / (1 - alpha_bar(t)). ratio is sigma / signal = 1 / sqrt(snr), which Karras et
al. 2022 call sigma. Letters in the shape columns: B batch, T the number of steps.
"""

import torch
from torch import Tensor

T_SAMPLINGS = ("uniform", "stratified", "lognormal")
WEIGHTINGS = ("plain", "min-snr", "min-snr+1", "p2", "edm")
MEAN, STD = -1.2, 1.2  # of ln sigma, table 1 of Karras et al. 2022
SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], from the same table
GAMMA = 5.0  # min-SNR clips the SNR at this value
BOUND_WEIGHT = 1e-3  # weight of the bound in the hybrid loss, section 3.1 of Nichol & Dhariwal 2021


def draw_times(
    kind: str,
    count: int,
    ratio: Tensor,
    random: torch.Generator,
    mean: float = MEAN,
    std: float = STD,
) -> Tensor:
    """Draw t (B,) in 1..T for a batch of `count`. ratio (T,) rises with t and is on the device of
    `random`.

    "uniform": independent draws, Algorithm 1 of Ho et al. 2020. "stratified": evenly spaced over
    1..T with one random offset, so that each t is still uniform (Kingma et al. 2021, "Variational
    diffusion models", appendix I). "lognormal": ln sigma ~ N(mean, std^2), rounded to the t with
    the nearest ln sigma (Karras et al. 2022, section 5).
    """
    T, device = len(ratio), random.device
    if kind == "uniform":
        return torch.randint(1, T + 1, (count,), generator=random, device=device)
    if kind == "stratified":
        u = (
            torch.rand((), generator=random, device=device)
            + torch.arange(count, device=device) / count
        )
        return (u % 1 * T).long().clamp(max=T - 1) + 1
    log_ratio = ratio.log()
    between = (log_ratio[1:] + log_ratio[:-1]) / 2  # (T-1,)
    return (
        torch.bucketize(mean + std * torch.randn(count, generator=random, device=device), between)
        + 1
    )


def weight(kind: str, parameterization: str, snr: Tensor) -> Tensor:
    """The weight of the squared error of the network's target, snr (B,) -> (B,).

    "plain" is 1, which gives L_simple (Eq. 14, Ho et al. 2020) for eps. The others define the same
    loss for every parameterization. Their weights of the squared error of x_0 are:
    "min-snr": min(snr, 5) (Hang et al. 2023);
    "min-snr+1": min(snr, 5) + 1, which is min-SNR applied to the weight snr + 1 that plain v has
    (Salimans & Ho 2022, section 4); it does not vanish near t = T;
    "p2": snr / (1 + snr), which is 1 / (1 + snr) for eps (Choi et al. 2022, with k = gamma = 1);
    "edm": (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = snr + 1 / sigma_data^2 (Karras et al.
    2022, table 1).

    Raises KeyError for any other kind and, unless the kind is "plain", any other parameterization.
    """
    if kind == "plain":
        return torch.ones_like(snr)
    of_x0 = {
        "min-snr": snr.clamp(max=GAMMA),
        "min-snr+1": snr.clamp(max=GAMMA) + 1,
        "p2": snr / (1 + snr),
        "edm": snr + SIGMA_DATA**-2,
    }[kind]
    return of_x0 / {"x0": torch.ones_like(snr), "eps": snr, "v": 1 + snr}[parameterization]
