"""The network, the table and the training."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

_CALIBRATION, _TEST = 64, 150  # rows that no hospital has
FEATURES = 30


def build():
    """The network: raw measurements in, two class scores out."""
    return nn.Sequential(
        nn.BatchNorm1d(FEATURES),
        nn.Linear(FEATURES, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


def _table():
    rows, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return torch.tensor(rows[order], dtype=torch.float32), torch.tensor(labels[order])


def load_hospital(partition_id, num_partitions):
    """A hospital's rows and labels."""
    rows, labels = _table()
    start = _CALIBRATION + _TEST
    return rows[start + partition_id :: num_partitions], labels[start + partition_id :: num_partitions]


def load_calibration():
    """The server's rows, without labels."""
    return _table()[0][:_CALIBRATION]


def load_test():
    """Rows and labels to judge the global model by."""
    rows, labels = _table()
    return rows[_CALIBRATION : _CALIBRATION + _TEST], labels[_CALIBRATION : _CALIBRATION + _TEST]


def train(net, rows, labels, epochs, lr):
    """Train; the last batch's loss."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for part in torch.randperm(len(rows), generator=generator).split(16):
            if len(part) > 1:  # BatchNorm needs two
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(rows[part]), labels[part])
                loss.backward()
                optimizer.step()
    return loss.item()


def accuracy(net, rows, labels):
    """Share of patients whose class is right."""
    net.eval()
    with torch.no_grad():
        return (net(rows).argmax(1) == labels).float().mean().item()
