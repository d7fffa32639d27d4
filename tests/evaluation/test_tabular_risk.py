import pytest
import torch
from sklearn.metrics import recall_score, roc_auc_score

import hauberk as hb
from hauberk.evaluation import measure_risk


def test_risk_of_a_linear_model_is_what_the_formula_says():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, 4, generator=generator)
    w = torch.tensor([3.0, -2.0, 1.0, 0.5])
    y = (x @ w - 1.2 + 0.6 * torch.randn(500, generator=generator) > 0).long()
    net = torch.nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.stack([-w / 2, w / 2]))
        net.bias.copy_(torch.tensor([0.6, -0.6]))
    eps = torch.tensor([0.1, 0.05, 0.0, 0.2])
    threat = hb.Linf(eps, low=-10.0, high=10.0)
    risk = measure_risk(net, (x, y), threat=threat, miss=5.0, false_alarm=2.0)
    score = x.double() @ w.double() - 1.2
    worst = score - (2 * y - 1) * float((eps * w.abs()).sum())
    for values, auc, recall, cost in (
        (score, risk.auc, risk.recall, risk.cost),
        (worst, risk.auc_attacked, risk.recall_attacked, risk.cost_attacked),
    ):
        said = (values > 0).long()
        assert auc == pytest.approx(roc_auc_score(y, values), abs=1e-3)
        assert recall == pytest.approx(recall_score(y, said), abs=3e-3)
        wrong = 5.0 * ((y == 1) & (said == 0)).sum() + 2.0 * ((y == 0) & (said == 1)).sum()
        assert cost == pytest.approx(float(wrong) / 500, abs=0.01)
    with pytest.raises(hb.UserError, match="two classes"):
        measure_risk(torch.nn.Linear(4, 3), (x, y), threat=threat)
