"""Our attacks beside those of torchattacks, on the same models: the accuracy that each leaves, in percent.

pip install --no-deps torchattacks tqdm
python benchmarks/attacks.py
"""

import time

import torch
import torchattacks
from torch import nn
from torch.nn.functional import cross_entropy

from implicitnets import data
from implicitnets.analysis import FGSM, PGD, Attackable, attack
from implicitnets.models import ImplicitModel, MonotoneDEQ

MODELS = {
    "‖A‖∞ ≤ 0.95": lambda: ImplicitModel(64, 40, 10),
    "monotone": lambda: nn.Sequential(MonotoneDEQ(64, 40), nn.Linear(40, 10)),
}
BALLS = (("inf", 0.05), ("inf", 0.1), (2, 0.5))
OURS = {"FGSM": FGSM(), "PGD": PGD(), "PGD at each class": PGD(targets=9)}


def theirs(victim, norm, radius):
    steps = {"eps": radius, "alpha": radius / 10, "steps": 40}
    yield torchattacks.PGD(victim, **steps) if norm == "inf" else torchattacks.PGDL2(victim, **steps)
    yield torchattacks.AutoAttack(victim, norm="Linf" if norm == "inf" else "L2", eps=radius, n_classes=10, seed=0)


def train(make, part):
    torch.manual_seed(0)
    model, shuffle = make(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        for inputs, labels in part.batches(64, generator=shuffle):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model


def main():
    dataset = data.digits()
    x, labels = dataset.test.inputs[:200], dataset.test.labels[:200]
    images = x.view(-1, 1, 8, 8)
    print(
        f"| model, region | {' | '.join(OURS)} | torchattacks PGD | torchattacks AutoAttack | seconds, ours | theirs |"
    )
    print("|---|" + "--:|" * 7)
    for name, make in MODELS.items():
        model = train(make, dataset.train)
        victim = Attackable(model, (1, 8, 8), flat=True)
        for norm, radius in BALLS:
            left, seconds = [], []
            for method in OURS.values():
                begin = time.perf_counter()
                result = attack(model, x, labels, radius=radius, norm=norm, domain=(0, 1), method=method)
                left.append(result.accuracy)
                seconds.append(time.perf_counter() - begin)
            for tool in theirs(victim, norm, radius):
                begin = time.perf_counter()
                adversarial = tool(images, labels)
                left.append((victim(adversarial).argmax(1) == labels).double().mean().item())
                seconds.append(time.perf_counter() - begin)
            numbers = " | ".join(f"{100 * value:.1f}" for value in left)
            print(f"| {name}, {norm} {radius} | {numbers} | {seconds[2]:.0f} | {seconds[4]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
