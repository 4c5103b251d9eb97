"""The training objective: the distribution of t, and the weight of the error at each t.

    t = draw_times("uniform", 128, ratio, generator)        # (B,) in 1..T
    loss = (weight("min-snr", "v", snr) * squared_error).mean()

snr is alpha_bar(t) / (1 - alpha_bar(t)), ratio = sigma / signal = 1 / sqrt(snr) is called sigma in
Karras et al. 2022. Letters in the shape columns: B batch, T the number of steps.
"""

import torch
from torch import Tensor

T_SAMPLINGS = ("uniform", "stratified", "lognormal")
WEIGHTINGS = ("plain", "min-snr", "p2", "edm")
MEAN, STD = -1.2, 1.2  # of ln sigma, table 1 of Karras et al. 2022
SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], likewise
GAMMA = 5.0  # where min-SNR cuts
BOUND = 1e-3  # weight of the bound in the hybrid loss, section 3.1 of Nichol & Dhariwal 2021


def draw_times(
    kind: str,
    count: int,
    ratio: Tensor,
    random: torch.Generator,
    mean: float = MEAN,
    std: float = STD,
) -> Tensor:
    """t (B,) in 1..T for a batch of `count`; ratio (T,) rises with t, on the device of `random`.

    "uniform": each on its own, Algorithm 1 of Ho et al. 2020. "stratified": one random offset,
    then evenly over 1..T, each of them still uniform (Kingma et al. 2021, "Variational diffusion
    models", appendix I). "lognormal": ln sigma ~ N(mean, std^2), at the t whose ln sigma is
    nearest (Karras et al. 2022, section 5).
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
    """The factor of the squared error of `parameterization`'s target, snr (B,) -> (B,).

    "plain": 1, L_simple (Eq. 14, Ho et al. 2020). The others are the same whatever the network
    predicts; as a factor of the squared error of x_0 they are: "min-snr": min(snr, 5) (Hang et al.
    2023); "p2": snr / (1 + snr), i.e. 1 / (1 + snr) of eps (Choi et al. 2022, with k = gamma = 1);
    "edm": (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = snr + 1 / sigma_data^2 (Karras et al.
    2022, table 1).
    """
    if kind == "plain":
        return torch.ones_like(snr)
    of_x0 = {"min-snr": snr.clamp(max=GAMMA), "p2": snr / (1 + snr), "edm": snr + SIGMA_DATA**-2}[
        kind
    ]
    return of_x0 / {"x0": torch.ones_like(snr), "eps": snr, "v": 1 + snr}[parameterization]
