"""One training step as a user of other libraries would make it: adversarial-robustness-toolbox (ART), torchattacks."""

import torch
import torch.nn.functional as F
from public_steps import EPS, SIZE, STEPS, Step
from torch import Tensor, nn


def libraries(model: nn.Module, shape: tuple[int, ...], classes: int, batch: int) -> dict[str, dict[str, Step]]:
    """Steps by method and library, of those that are installed: ``pip install adversarial-robustness-toolbox torchattacks``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    found: dict[str, dict[str, Step]] = {"at": {}, "trades": {}}
    try:
        import torchattacks

        pgd = torchattacks.PGD(model, eps=EPS, alpha=SIZE, steps=STEPS)

        def loop(x: Tensor, y: Tensor) -> None:
            point = pgd(x, y)
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(point), y).backward()
            optimizer.step()

        found["at"]["torchattacks"] = loop
    except ImportError:
        pass
    try:
        from art.attacks.evasion import ProjectedGradientDescent
        from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
        from art.estimators.classification import PyTorchClassifier

        art = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, classes, optimizer, clip_values=(0.0, 1.0))
        madry = AdversarialTrainerMadryPGD(art, nb_epochs=1, batch_size=batch, eps=EPS, eps_step=SIZE, max_iter=STEPS)
        pgd_art = ProjectedGradientDescent(
            art, eps=EPS, eps_step=SIZE, max_iter=STEPS, num_random_init=1, batch_size=batch, verbose=False
        )
        trades = AdversarialTrainerTRADESPyTorch(art, pgd_art, beta=6.0)

        def by_madry(x: Tensor, y: Tensor) -> None:
            madry.fit(x.cpu().numpy(), F.one_hot(y, classes).cpu().numpy(), nb_epochs=1)

        def by_trades(x: Tensor, y: Tensor) -> None:
            trades.fit(x.cpu().numpy(), F.one_hot(y, classes).cpu().numpy(), batch_size=batch, nb_epochs=1)

        found["at"]["ART"], found["trades"]["ART"] = by_madry, by_trades
    except ImportError:
        pass
    return found
