"""Is the encoder collapsing? The loss does not tell; these numbers do."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ijepa.jepa.model import LOSSES
from ijepa.jepa.verdict import Health

ROWS = 1024  # images whose similarity to all others is held at a time


@torch.no_grad()
def health(features: Tensor) -> Health:
    """Measure pooled features (images, dim) of at least two images."""
    features = exact(features)
    return Health(rankme(features), float(features.std(dim=0).mean()), mean_cosine(features))


def rankme(features: Tensor) -> float:
    """Effective rank of (images, dim): exp of the entropy of the normalised singular values.

    Source: Garrido et al., RankMe, 2023, equation 1.
    """
    return _effective_rank(torch.linalg.svdvals(exact(features)))


def exact(values: Tensor) -> Tensor:
    """Convert to float64; on the CPU if the device is Apple's GPU, which has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _effective_rank(values: Tensor) -> float:
    share = values / values.sum().clamp(min=1e-300) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def mean_cosine(features: Tensor) -> float:
    """Mean cosine similarity over all pairs of different rows, without making the pairs."""
    unit = F.normalize(exact(features), dim=1)
    count = len(unit)
    return float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))


def lidar(views: Tensor, delta: float = 1e-4) -> float:
    """Effective rank of what tells images apart, relative to what tells views of one image apart.

    Views are (images, views, dim) float; here each is what the predictor makes of an image from
    another context, averaged over its target blocks. `delta` is added to the within-image
    covariance, which need not have full rank.

    Source: Thilak et al., LiDAR, 2023, section 4. At most min(images - 1, dim).
    """
    views = exact(views)
    num_images, num_views, dim = views.shape
    means = views.mean(dim=1)
    spread = (views - means.unsqueeze(1)).flatten(0, 1)
    within = spread.T @ spread / (num_images * num_views)
    within += delta * torch.eye(dim, dtype=torch.float64, device=views.device)
    centred = means - means.mean(dim=0)
    between = centred.T @ centred / num_images
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    strength = torch.linalg.eigvalsh(whiten @ between @ whiten).clamp(min=0)
    return _effective_rank(strength)


def neighbour_accuracy(features: Tensor, labels: Tensor, neighbours: int = 10) -> float:
    """Share of images whose class is that of most of their nearest neighbours.

    Features are (images, dim) float, labels any (images,) int64. An image is no neighbour of
    itself; in a tie the smallest class number wins.
    """
    unit = F.normalize(exact(features), dim=1)
    labels = torch.unique(labels.to(unit.device), return_inverse=True)[1]
    classes = F.one_hot(labels)
    num_right = 0
    for rows in torch.split(torch.arange(len(unit), device=unit.device), ROWS):
        similarity = unit[rows] @ unit.T
        similarity.scatter_(1, rows.unsqueeze(1), -torch.inf)  # itself
        nearest = similarity.topk(min(neighbours, len(labels) - 1), dim=1).indices
        votes = classes[nearest].sum(dim=1)
        num_right += int((votes.argmax(dim=1) == labels[rows]).sum())
    return num_right / len(unit)


def loss_vs_mean_target(predictions: Tensor, targets: Tensor, loss: str = "smooth_l1") -> float:
    """Loss divided by the loss of always predicting the batch's mean target; 1 means no skill.

    Predictions and targets are (M * B, T, dim) each; `loss` is one of `LOSSES`.
    """
    targets = targets.float()
    mean = targets.mean(dim=(0, 1), keepdim=True).expand_as(targets)
    return float(LOSSES[loss](predictions.float(), targets) / LOSSES[loss](mean, targets))
