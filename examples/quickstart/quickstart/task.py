"""The network, the data and the training."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

_SERVER = 360  # examples that no client has


class Net(nn.Module):
    """A small convolutional network for images of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        """Class scores, shape ``(N, 10)``, of images ``(N, 1, 8, 8)``."""
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def _digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs = torch.tensor(images[order] / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    return TensorDataset(inputs, torch.tensor(labels[order]))


def load_data(partition_id, num_partitions):
    """A client's part: batches to train on, and to validate."""
    whole = _digits()
    own = torch.arange(_SERVER, len(whole))[partition_id::num_partitions].tolist()
    cut = int(0.8 * len(own))
    shuffle = torch.Generator().manual_seed(partition_id)
    trainloader = DataLoader(torch.utils.data.Subset(whole, own[:cut]), batch_size=32, shuffle=True, generator=shuffle)
    return trainloader, DataLoader(torch.utils.data.Subset(whole, own[cut:]), batch_size=32)


def load_calibration():
    """The server's own inputs: 180 digits, without labels."""
    return _digits()[: _SERVER // 2][0]


def load_test():
    """180 other digits, to judge the global model by."""
    return DataLoader(torch.utils.data.Subset(_digits(), range(_SERVER // 2, _SERVER)), batch_size=180)


def train(net, trainloader, epochs, lr):
    """Train; the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(trainloader))


def test(net, testloader):
    """Loss and accuracy."""
    net.eval()
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in testloader:
            outputs = net(images)
            loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
            right += (outputs.argmax(1) == labels).sum().item()
            count += len(labels)
    return loss / count, right / count
