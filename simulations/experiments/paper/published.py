"""The paper's own figures: C2M3 (Crisostomi et al., NeurIPS 2024, arXiv:2405.17897), each with its table or figure.

Only numbers that the paper prints are here; curves without printed numbers are not read off.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Five:
    """Five networks merged (Table 1): accuracy in [0, 1] and loss in nats; REPAIR is the paper's dagger."""

    train_accuracy: float
    test_accuracy: float
    train_loss: float
    test_loss: float


TABLE_1: dict[tuple[str, str, bool], Five] = {
    # (network, method, REPAIR)
    ("mlp-emnist", "naive", False): Five(0.03, 0.03, 3.28, 3.28),
    ("mlp-emnist", "merge-many", False): Five(0.88, 0.86, 1.11, 1.13),
    ("mlp-emnist", "merge-many", True): Five(0.88, 0.86, 1.11, 1.13),
    ("mlp-emnist", "c2m3", False): Five(0.89, 0.87, 1.07, 1.10),
    ("mlp-emnist", "c2m3", True): Five(0.89, 0.87, 1.07, 1.10),
    ("resnet20-emnist", "naive", False): Five(0.04, 0.04, 4.04, 4.04),
    ("resnet20-emnist", "merge-many", False): Five(0.03, 0.03, 7.17, 7.18),
    ("resnet20-emnist", "merge-many", True): Five(0.03, 0.03, 4.74, 4.72),
    ("resnet20-emnist", "c2m3", False): Five(0.27, 0.27, 3.43, 3.47),
    ("resnet20-emnist", "c2m3", True): Five(0.60, 0.60, 1.32, 1.34),
    ("resnet20-cifar10", "naive", False): Five(0.10, 0.10, 3.07, 3.07),
    ("resnet20-cifar10", "merge-many", False): Five(0.38, 0.37, 2.08, 2.06),
    ("resnet20-cifar10", "merge-many", True): Five(0.50, 0.50, 2.34, 2.30),
    ("resnet20-cifar10", "c2m3", False): Five(0.42, 0.40, 2.11, 2.05),
    ("resnet20-cifar10", "c2m3", True): Five(0.72, 0.69, 1.26, 1.12),
    ("vgg16-cifar10", "naive", False): Five(0.10, 0.10, 2.31, 2.31),
    ("vgg16-cifar10", "merge-many", False): Five(0.10, 0.10, 2.36, 2.36),
    ("vgg16-cifar10", "merge-many", True): Five(0.60, 0.57, 1.43, 1.32),
    ("vgg16-cifar10", "c2m3", False): Five(0.11, 0.11, 2.34, 2.34),
    ("vgg16-cifar10", "c2m3", True): Five(0.64, 0.62, 1.34, 1.23),
    # The upper one of the two networks that the table lists for CIFAR-100.
    ("resnet20-cifar100", "naive", False): Five(0.01, 0.01, 5.30, 5.30),
    ("resnet20-cifar100", "merge-many", False): Five(0.31, 0.28, 3.01, 2.76),
    ("resnet20-cifar100", "merge-many", True): Five(0.24, 0.22, 3.31, 3.12),
    ("resnet20-cifar100", "c2m3", False): Five(0.34, 0.30, 2.94, 2.63),
    ("resnet20-cifar100", "c2m3", True): Five(0.53, 0.46, 2.13, 1.67),
}

INCREASING_N_MLP_ACCURACY_FLOOR = 0.98
"""Merged accuracy of up to 20 MLPs on MNIST "doesn't fall below 98%" (section 4 and Figure 7a)."""

CYCLE_ERROR = {"git-re-basin": (41.07, 41.18, 41.19), "c2m3": (0.0, 0.0, 0.0)}
"""d(A, P(A)) around the cycle, from A, from B and from C (Figure 2b)."""

COSINE_GAIN = 3.0
"""Cosine similarity of five ResNet20s' weights is 3 times higher in the universe (section 4, Figure 5)."""

REFERENCE_WORST = 0.65
"""The worst accuracy when one of five ResNet20-4x is the reference is "as low as 65%" (section 4, Figure 9)."""

SUBSET_SPAN = 0.20
"""Accuracy differs by up to about 20 points between subsets of equal size (appendix C.2)."""


@dataclass(frozen=True)
class Barrier:
    """Loss barrier in nats: mean and standard deviation."""

    train: float
    train_std: float
    test: float
    test_std: float


PAIRWISE: dict[tuple[str, str], Barrier] = {
    # Table 2, CIFAR-100
    ("resnet20-cifar100", "naive"): Barrier(7.00, 1.24, 8.37, 1.23),
    ("resnet20-cifar100", "git-re-basin"): Barrier(1.04, 0.10, 1.54, 0.13),
    ("resnet20-cifar100", "pairwise-frank-wolfe"): Barrier(0.92, 0.06, 1.42, 0.10),
    ("vgg16-cifar100", "naive"): Barrier(5.79, 0.39, 7.36, 0.38),
    ("vgg16-cifar100", "git-re-basin"): Barrier(0.44, 0.03, 0.64, 0.03),
    ("vgg16-cifar100", "pairwise-frank-wolfe"): Barrier(0.44, 0.05, 0.63, 0.06),
    # Table 3, VGG16 on CIFAR-10
    ("vgg16-cifar10", "naive"): Barrier(1.85, 0.00, 2.31, 0.00),
    ("vgg16-cifar10", "git-re-basin"): Barrier(0.08, 0.03, 0.24, 0.03),
    ("vgg16-cifar10", "pairwise-frank-wolfe"): Barrier(0.08, 0.03, 0.25, 0.03),
    # Table 4, ResNet20-2x with BatchNorm on CIFAR-10
    ("resnet20-bn-cifar10", "naive"): Barrier(4.72, 0.86, 4.99, 0.86),
    ("resnet20-bn-cifar10", "git-re-basin"): Barrier(4.33, 0.64, 4.62, 0.65),
    ("resnet20-bn-cifar10", "pairwise-frank-wolfe"): Barrier(3.53, 0.58, 3.79, 0.57),
}

TABLE_5 = {"identity": (0.52, 0.65, 0.97), "barycentre": (0.47, 0.70, 0.95), "sinkhorn": (0.60, 0.64, 0.92)}
"""Test barrier of the pairs (a, b), (b, c) and (a, c) of three ResNet20-2x, by start; Sinkhorn's is a mean of ten."""

TABLE_6 = {(0, 1): (0.74, 0.018, 0.060, 0.75), (0, 2): (0.65, 0.020, 0.071, 0.65), (1, 2): (0.70, 0.020, 0.071, 0.72)}
"""Test accuracy midway between two networks: Git Re-Basin's mean, standard deviation and largest gap over nine seeds,
and Frank-Wolfe's, by pair."""

SECONDS_TWO_RESNETS = {
    ("8x", "merge-many"): 4.0,
    ("8x", "c2m3"): 19.0,
    ("16x", "merge-many"): 30.0,
    ("16x", "c2m3"): 90.0,
}
"""Seconds to merge two ResNet20 (appendix A.5), on a consumer GPU."""
