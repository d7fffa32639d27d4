"""The sections of a report that a training run fills."""

from typing import Any

from hauberk.report import charts
from hauberk.report.blocks import Chart, Fact, Grid, Notice, Section

# What training curves show, where the method looked at it.
_ACCURACIES = {
    "val_robust_accuracy": "validation, under attack",
    "val_clean_accuracy": "validation, clean",
    "train_robust_accuracy": "training, under attack",
    "train_clean_accuracy": "training, clean",
}
_OVERFIT = 0.03  # loss of robust validation accuracy from best to last epoch that is worth a word


def facts(card: dict[str, Any], rows: list[dict[str, Any]]) -> list[Fact]:
    """Return headline numbers of a run that nobody has evaluated yet."""
    best = card["metrics"]
    held = card["data"].get("val", 0)
    found = [
        Fact(
            name, f"{100 * best[key]:.1f} %", f"PGD on {held:,} held-out training examples; no test" if "robust" in key else ""
        )
        for key, name in (("val_robust_accuracy", "validation, under attack"), ("val_clean_accuracy", "validation, clean"))
        if key in best
    ]
    return [*found, Fact("best epoch", f"{card['epoch']} of {len(rows)}", f"{sum(row['seconds'] for row in rows[-1:]):,.0f} s")]


def notices(rows: list[dict[str, Any]], planned: int) -> list[Notice]:
    """Return what is worth a word about the training."""
    found = []
    robust = [row["val_robust_accuracy"] for row in rows if "val_robust_accuracy" in row]
    if len(rows) < planned:
        found.append(Notice("info", f"The run is not finished: {len(rows)} of {planned} epochs."))
    if robust and max(robust) - robust[-1] > _OVERFIT:
        lost = 100 * (max(robust) - robust[-1])
        said = (
            f"Robust overfitting: the last epoch's validation accuracy under attack is {lost:.1f} points below the best one's. "
            "The best checkpoint is the one that counts; train for fewer epochs."
        )
        found.append(Notice("warning", said))
    return found


def sections(rows: list[dict[str, Any]]) -> list[Section]:
    """Return curves of the training, and what the weights did."""
    epochs = [float(row["epoch"]) for row in rows]
    accuracies = {
        name: [100 * row[key] for row in rows] for key, name in _ACCURACIES.items() if all(key in row for row in rows)
    }
    blocks = []
    if accuracies:
        caption = "Accuracy over epochs"
        figure = charts.lines(epochs, accuracies, xlabel="epoch", ylabel="accuracy, %")
        blocks.append(Chart("accuracy", caption, figure, _table("accuracy", caption, epochs, accuracies)))
    losses = {"loss": [row["loss"] for row in rows]}
    blocks.append(
        Chart(
            "loss",
            "Training loss over epochs",
            charts.lines(epochs, losses, xlabel="epoch", ylabel="loss"),
            _table("loss", "Training loss over epochs", epochs, losses),
        )
    )
    rates = {"learning rate": [row["lr"] for row in rows]}
    blocks.append(Chart("rate", "Learning rate", charts.lines(epochs, rates, xlabel="epoch", ylabel="learning rate")))
    parts = [Section("Training", blocks)]
    if all("weight_q50" in row for row in rows):
        parts.append(_weights(epochs, rows))
    return parts


def _weights(epochs: list[float], rows: list[dict[str, Any]]) -> Section:
    blocks = []
    for key, name, what in (("measure", "margins", "margin or steps"), ("weight", "weights", "weight")):
        quantiles = {f"{q} %": [row[f"{key}_q{q}"] for row in rows] for q in (10, 50, 90)}
        caption = f"Distribution of {'what the weights are made from' if key == 'measure' else 'the weights'} over epochs"
        figure = charts.band(epochs, *quantiles.values(), xlabel="epoch", ylabel=what)
        blocks.append(Chart(name, caption, figure, _table(name, caption, epochs, quantiles)))
    sizes = {"effective share": [100 * row["effective_size"] for row in rows]}
    caption = "On how much of a batch the loss rests (Kish's effective size): 100 % means equal weights"
    figure = charts.lines(epochs, sizes, xlabel="epoch", ylabel="effective share, %", ylim=(0, 105))
    blocks.append(Chart("effective", caption, figure, _table("effective", caption, epochs, sizes)))
    return Section("Weights", blocks)


def _table(name: str, caption: str, epochs: list[float], series: dict[str, list[float]]) -> Grid:
    columns = zip(*series.values(), strict=True)
    rows = [[f"{epoch:.0f}", *(f"{v:.4g}" for v in values)] for epoch, values in zip(epochs, columns, strict=True)]
    return Grid(name, caption, ["epoch", *series], rows)
