"""The optimizer of a model, and its learning rate as a function of the step.

    optimizer = build_optimizer(settings, unet)          # Adam, or Muon for the hidden weights
    factor = learning_rate_factor(settings, total=3000, step=0)

Letters in the shape columns: N matrices of the same shape, R rows, K columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.settings import ModelSettings

# The first and the last layer and the embeddings. Adam updates them, like biases and
# normalizations.
NOT_HIDDEN = {
    *("conv_in", "conv_out", "time", "label", "augmentation", "embed"),
    *("time_proj", "time_embedding", "class_embedding", "time_emb_proj"),  # of a UNet2DModel
}
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the coefficients of Jordan et al. 2024
ITERATIONS = 5


def build_optimizer(settings: ModelSettings, network: nn.Module) -> torch.optim.Adam:
    """Adam for all weights (Ho et al. 2020, appendix B), or `Muon`."""
    if settings.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    hidden, rest = [], []
    for name, parameter in network.named_parameters():
        (hidden if is_hidden(name, parameter) else rest).append(parameter)
    return Muon(hidden, rest, lr=settings.lr, hidden_lr=settings.muon_lr)


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether this is the matrix of a hidden layer, or the kernel of a hidden convolution."""
    return parameter.ndim >= 2 and not NOT_HIDDEN & set(name.split("."))


class Muon(torch.optim.Adam):
    """Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") for the
    hidden weights, Adam for the rest.

    Muon orthogonalizes the momentum of each weight matrix before the update, so that all singular
    directions change at the same rate. A convolution's kernel (out, in, k, k) is treated as the
    matrix (out, in * k * k). The first parameter group has the hidden weights.
    """

    def __init__(self, hidden: list[Any], rest: list[Any], lr: float, hidden_lr: float):
        group = {"params": hidden, "lr": hidden_lr, "momentum": MOMENTUM}
        super().__init__([group, {"params": rest}], lr=lr, fused=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.update_hidden(groups[0])
        self.param_groups = groups[1:]  # Adam updates the rest
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    @torch.no_grad()
    def update_hidden(self, group: dict[str, Any]) -> None:
        """One step of Muon. Matrices of the same shape are updated together.

        Like fused Adam, it divides the gradient by the attribute `grad_scale`, and changes neither
        weights nor momenta if `found_inf` is 1. Both attributes are optional.
        """
        same_shape = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                same_shape[parameter.flatten(1).shape].append(parameter)
        for (rows, columns), parameters in same_shape.items():
            momenta = [self.momentum_of(parameter) for parameter in parameters]
            directions = self.directions(parameters, momenta, group["momentum"])  # (N,R,K)
            rate = group["lr"] * max(1, rows / columns) ** 0.5
            found_inf = getattr(self, "found_inf", None)
            if found_inf is not None:
                rate = rate * (1 - found_inf)
            for parameter, update in zip(parameters, orthogonalize(directions) * rate):
                parameter.sub_(update.reshape(parameter.shape))

    def momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:  # Adam requires "step" in every state that it loads
            state["step"] = torch.zeros((), device=parameter.device)
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        return state["momentum"]

    def directions(self, parameters: list[Tensor], momenta: list[Tensor], decay: float) -> Tensor:
        """Update the momenta and return the update directions (N,R,K), with Nesterov momentum."""
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        directions = []
        for parameter, momentum in zip(parameters, momenta):
            gradient: Tensor = parameter.grad  # type: ignore[assignment]
            if scale is not None:
                gradient = gradient / scale
            if found_inf is not None:
                gradient = torch.where(found_inf > 0, momentum, gradient)
            momentum.lerp_(gradient, 1 - decay)
            directions.append(gradient.lerp(momentum, decay).flatten(1))
        return torch.stack(directions)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Replace the singular values of each matrix by about 1: (N,R,K) -> float32 (N,R,K).

    Five Newton-Schulz iterations X <- (a + b G + c G G) X with G = X X^T bring the singular values
    to between 0.7 and 1.2. Each iteration multiplies X by a matrix P (R,R), a polynomial of G. The
    product of the five P is computed first and applied to X once, which is 2.5 times faster for the
    kernels of this network.
    """
    a, b, c = NEWTON_SCHULZ
    X = matrices.float()
    tall = X.shape[1] > X.shape[2]
    if tall:
        X = X.mT
    X = X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)
    G = X @ X.mT  # (N,R,R)
    identity = torch.eye(G.shape[1], device=G.device)
    product = identity
    for _ in range(ITERATIONS):
        P = torch.baddbmm(G, G, G, beta=b, alpha=c) + a * identity
        product = P @ product
        G = P @ G @ P
    X = product @ X
    return X.mT if tall else X


def learning_rate_factor(settings: ModelSettings, total: int, step: int) -> float:
    """The factor of the learning rate at this step, counted from 0, of `total` steps.

    It rises linearly over `warmup` steps. Over the last fraction `cooldown` of all steps it falls
    to 0, linearly or along half a cosine. With the schedule "constant" it does not fall.
    """
    factor = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.lr_schedule == "constant":
        return factor
    start = total * (1 - settings.cooldown)
    progress = min(1.0, max(0.0, (step - start) / max(1.0, total - start)))
    if settings.lr_schedule == "linear":
        return factor * (1 - progress)
    return factor * (1 + math.cos(math.pi * progress)) / 2
