"""What PPO makes of rewards and values, token by token.

All tensors have shape (answers, tokens) and are float32; ``mask`` is 1 at an answer's tokens and
0 elsewhere. An answer's tokens follow one another without a gap.
"""

import torch
from torch import Tensor


def token_rewards(
    scores: Tensor, log_probs: Tensor, reference: Tensor, mask: Tensor, coefficient: float
) -> Tensor:
    """The reward model's score at an answer's last token, less what each token diverges from
    the reference (Ouyang et al. 2022, arXiv:2203.02155, equation 2; one sample's estimate of
    the divergence, ``log p - log q``).

    Args:
        scores: of answers; shape (answers,).
    """
    rewards = -coefficient * (log_probs - reference) * mask
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * places).argmax(dim=1)
    rewards[torch.arange(len(scores), device=mask.device), last] += scores
    return rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, decay: float
) -> Tensor:
    """GAE (Schulman et al. 2015, arXiv:1506.02438, equation 16); nothing comes after an answer.

    ``values`` are of the states before each token. Their sum with the advantages are the
    returns that the value head learns.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for place in reversed(range(rewards.shape[1])):
        here = mask[:, place]
        surprise = rewards[:, place] + discount * next_value - values[:, place]
        following = here * (surprise + discount * decay * following)
        next_value = here * values[:, place]
        advantages[:, place] = following
    return advantages


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """With mean 0 and variance 1 over the tokens of all answers (Huang et al. 2024,
    arXiv:2403.17031, detail "whitening"); 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()


def policy_losses(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """The clipped surrogate, negated (Schulman et al. 2017, arXiv:1707.06347, equation 7)."""
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.min(ratio * advantages, clipped * advantages)


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Half the squared error; a value gains nothing by moving farther than ``clip_range``
    (Huang et al. 2024, arXiv:2403.17031, detail "value clipping")."""
    clipped = old + (values - old).clamp(-clip_range, clip_range)
    return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2)
