"""Models of scikit-learn: exact modules compute what they do, all others are attacked by their answers alone."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

import hauberk as hb
from hauberk.attacks import PRESETS
from hauberk.attacks.model.check_model import has_gradient
from hauberk.cli import main
from hauberk.data import make_table
from hauberk.data.tables.schema import parse_schema
from hauberk.models import GradientFree, from_sklearn

DRAW = np.random.default_rng(0)
X = DRAW.normal(3, [1, 5, 0.1, 20], (150, 4))
SCORE = X @ [1, 0.3, -4, 0.05] + DRAW.normal(size=150)
Y = {2: np.digitize(SCORE, [np.median(SCORE)]), 3: np.digitize(SCORE, np.quantile(SCORE, [0.3, 0.7]))}


def mlp(activation="relu", layers=(7, 5)):
    return MLPClassifier(layers, activation=activation, max_iter=40, random_state=0)


BEFORE = {
    "none": [],
    "standard": [StandardScaler()],
    "standard, no mean": [StandardScaler(with_mean=False)],
    "minmax": [MinMaxScaler((-1, 2))],
    "clip": [MinMaxScaler(clip=True)],
    "robust, maxabs": [RobustScaler(), MaxAbsScaler()],
    "imputer, whitening": [SimpleImputer(), StandardScaler(), PCA(3, whiten=True)],
    "columns": [ColumnTransformer([("a", StandardScaler(), [2, 0]), ("b", "passthrough", [3])], remainder=MinMaxScaler())],
    "pipeline inside": [make_column_transformer((make_pipeline(SimpleImputer(), RobustScaler()), slice(1, 3)))],
    "nothing": [FunctionTransformer(), "passthrough", StandardScaler()],
}
LAST = {
    "relu": mlp(), "tanh": mlp("tanh"), "logistic": mlp("logistic", (6,)), "identity": mlp("identity"),
    "logistic regression": LogisticRegression(), "one against rest": LogisticRegression(solver="liblinear"),
    "svc": LinearSVC(), "ridge": RidgeClassifier(), "sgd": SGDClassifier(loss="log_loss", random_state=0),
    "lda": LinearDiscriminantAnalysis(),
}  # fmt: skip
CASES = [(name, "relu", classes) for name in BEFORE for classes in (2, 3)]
CASES += [("standard", name, classes) for name in LAST for classes in (2, 3) if (name, classes) != ("one against rest", 3)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("before", "last", "classes"), CASES)
def test_a_pipeline_becomes_the_same_function(before, last, classes):
    estimator = make_pipeline(*BEFORE[before], LAST[last]).fit(X, Y[classes])
    module = from_sklearn(estimator, dtype=torch.float64)
    assert has_gradient(module)
    points = torch.from_numpy(np.concatenate([X, 4 * X - 9]))
    z = module(points)
    if last in ("relu", "tanh", "logistic", "identity", "logistic regression", "one against rest"):
        np.testing.assert_allclose(z.softmax(1), estimator.predict_proba(points), rtol=1e-9, atol=1e-12)
    else:
        d = z[:, 1] - z[:, 0] if classes == 2 else z
        np.testing.assert_allclose(d, estimator.decision_function(points), rtol=1e-9, atol=1e-9)
    assert z.argmax(1).tolist() == estimator.predict(points).tolist()
    assert torch.autograd.gradcheck(lambda x: module(x), points[:3].clone().requires_grad_())
    torch.testing.assert_close(from_sklearn(estimator)(points.float()), z.float(), rtol=1e-3, atol=1e-3)


def test_codes_of_categories_are_compared():
    codes = DRAW.integers(0, 4, (150, 2)) * 10.0
    x = np.concatenate([codes, X[:, :1]], 1)
    encoders = (
        OneHotEncoder(), OneHotEncoder(drop="first"), OneHotEncoder(handle_unknown="ignore", sparse_output=False),
        OrdinalEncoder(),
    )  # fmt: skip
    for encoder in encoders:
        estimator = make_pipeline(make_column_transformer((encoder, [0, 1]), remainder="passthrough"), LogisticRegression())
        estimator.fit(x, Y[2] ^ (codes[:, 0] > 15))
        z = from_sklearn(estimator, dtype=torch.float64)(torch.from_numpy(x))
        np.testing.assert_allclose(z.softmax(1), estimator.predict_proba(x), rtol=1e-9)


def test_what_is_exact_can_be_certified():
    estimator = make_pipeline(StandardScaler(), mlp()).fit(X, Y[2])
    module, x = hb.models.from_sklearn(estimator), torch.from_numpy(X[:30]).float()
    threat = hb.Linf([0.05, 0.2, 0.005, 1.0], low=-200.0, high=200.0)
    found = hb.certify(module, (x, module(x).argmax(1)), threat=threat, methods=("ibp", "crown"), quiet=True)
    assert 0.5 < found.certified_accuracy <= 1 - hb.attacks.pgd(module, x, module(x).argmax(1), threat).success.double().mean()


class Guard(torch.nn.Module):
    """Notes whether anything asks for a gradient through it."""

    has_gradient = False
    asked = 0

    def forward(self, x):
        Guard.asked += int(x.requires_grad and torch.is_grad_enabled())
        return torch.stack([x.sum(1).round(), torch.zeros(len(x))], 1)


OTHERS = {
    "forest": RandomForestClassifier(5, random_state=0), "boosting": GradientBoostingClassifier(n_estimators=5),
    "bayes": GaussianNB(), "kernel": SVC(), "rest": OneVsRestClassifier(LinearSVC()),
    "poly": make_pipeline(FunctionTransformer(np.square), LogisticRegression()),
}  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_all_else_answers_and_has_no_gradient(name, classes):
    estimator = OTHERS[name].fit(X, Y[classes])
    module, x = from_sklearn(estimator), torch.from_numpy(X).float()
    assert isinstance(module, GradientFree)
    assert not has_gradient(torch.nn.Sequential(hb.models.Normalize([0.0], [1.0]), module))
    assert (module(x).argmax(1).numpy() == estimator.predict(X.astype(np.float32))).mean() > 0.99
    with pytest.raises(hb.UserError, match="has no gradient"):
        module(x.requires_grad_())
    again, other = from_sklearn(pickle.loads(pickle.dumps(estimator))), from_sklearn(GaussianNB().fit(X[:99], Y[2][:99]))
    assert hb.models.model_id(again) == hb.models.model_id(module) != hb.models.model_id(other)


def test_no_attack_by_gradients_is_run_on_a_model_without_them():
    """Of all attacks there are, those that go by gradients refuse it, and the evaluation runs none; a stand-in lets them."""
    model, x = Guard(), torch.rand(20, 4)
    y, threat = model(x).argmax(1), hb.Linf(0.3)
    for name, preset in PRESETS.items():
        if preset.attack.uses_gradients and preset.attack.defined_in(threat.norm):
            with pytest.raises(hb.UserError, match=r"goes by gradients|L2|surrogate"):
                preset.attack(model, x, y, threat)
            with pytest.raises(hb.UserError, match="goes by gradients"):
                hb.evaluate(model, (x, y), threat=threat, attacks=[name], quiet=True)
    for suite in ("standard", "papers", "fast", "plus", "rand"):
        with pytest.raises(hb.UserError, match=f"'{suite}' goes by gradients, which this model has not; take suite='scores'"):
            hb.evaluate(model, (x, y), threat=threat, suite=suite, quiet=True)
    ev = hb.evaluate(model, (x, y), threat=threat, attacks=[hb.attacks.Square(50), "random-100"], precision="auto", quiet=True)
    said = {found.name: found for found in ev.diagnostics}["attacks-use-gradients"]
    assert said.verdict == "warning"
    assert "a weaker one than attacks by gradients give" in str(said)
    assert not {"gradients", "gradients-tell-the-truth", "attacks-find-planted-examples"} & {d.name for d in ev.diagnostics}
    assert list(hb.attacks.find_suite("quick").for_model(model, "quick").stages) == ["random-100", "square-1000"]
    net = torch.nn.Linear(4, 2)
    ev = hb.evaluate(model, (x, y), threat=threat, attacks=["pgd-10"], bpda=net, diagnostics="cheap", quiet=True)
    assert "attacks-use-gradients" not in {found.name for found in ev.warnings}
    assert Guard.asked == 0


def test_score_based_attacks_break_a_tree_as_far_as_all_points_do():
    """Square looks at corners only, and random points between them."""
    module = from_sklearn(DecisionTreeClassifier(max_depth=6, random_state=0).fit(X[:, :2], Y[2]))
    x, eps = torch.from_numpy(X[:, :2]).float(), torch.tensor([0.3, 1.0])
    y = module(x).argmax(1)
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 31)] * 2) * eps
    broken = torch.stack([module(x + step).argmax(1) != y for step in grid]).any(0)
    threat = hb.Linf(eps.tolist(), low=-100.0, high=100.0)
    corners = hb.attacks.square(module, x, y, threat, steps=200).success
    between = hb.attacks.random_search(module, x, y, threat, steps=300).success
    assert broken.sum() > 20
    assert (broken & ~corners).sum() > 0
    assert (broken & ~corners & ~between).sum() <= 2


def test_what_is_no_fitted_classifier_is_refused():
    for wrong in (LogisticRegression(), StandardScaler().fit(X), "model.pkl", make_pipeline(StandardScaler(), mlp())):
        with pytest.raises(hb.UserError, match="takes a fitted classifier"):
            from_sklearn(wrong)
    with pytest.raises(hb.UserError, match="are not those of the estimator"):
        from_sklearn(LogisticRegression().fit(X, Y[2]), classes=["a", "b"])


SCHEMA = """
label = "late"
classes = ["yes", "no"]
[features.income]
[features.months]
kind = "integer"
[features.job]
kind = "category"
[features.code]
kind = "category"
[features.owner]
kind = "category"
"""


def rows():
    pd = pytest.importorskip("pandas")
    draw = np.random.default_rng(0)
    found = pd.DataFrame({"income": draw.normal(0, 10, 200), "months": draw.integers(0, 9, 200)})
    found = found.assign(job=draw.choice(list("abc"), 200), code=draw.choice([3, 7, 12], 200), owner=draw.random(200) < 0.5)
    late = found["income"] / 10 + (found["job"] == "b") + (found["code"] == 7) - found["owner"] > 0.3
    return found.assign(late=np.where(late, "yes", "no"))


def test_a_pipeline_on_a_data_frame_sees_the_rows_of_a_table(tmp_path, monkeypatch, capsys):
    frame = rows()
    table = make_table(parse_schema(SCHEMA, "a schema"), frame, frame)
    inputs, categories = frame.drop(columns="late"), ["job", "code", "owner"]
    encoder = ColumnTransformer([
        ("c", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")), categories),
        ("n", StandardScaler(), ["months", "income"]),
    ])  # fmt: skip
    x = table.train.x
    forest = make_pipeline(encoder, DecisionTreeClassifier(max_depth=5, random_state=0)).fit(inputs, frame["late"])
    linear = make_pipeline(encoder, LogisticRegression()).fit(inputs, frame["late"])
    for estimator, exact in ((linear, True), (make_pipeline(encoder, mlp()).fit(inputs, frame["late"]), True), (forest, False)):
        module = table.from_sklearn(estimator)
        assert has_gradient(module) == exact
        wanted = estimator.predict_proba(inputs)[:, ::-1]  # the table has "no" last
        np.testing.assert_allclose(module(x).softmax(1), wanted, atol=1e-5)
        assert torch.equal(module(x + 0.2), module(x + torch.tensor([0.2] + [0.0] * (x.shape[1] - 1))))  # the nearest row
    ordinal = make_pipeline(make_column_transformer((OrdinalEncoder(), categories)), LogisticRegression())
    np.testing.assert_allclose(
        table.from_sklearn(ordinal.fit(inputs[categories], frame["late"]))(x).softmax(1).numpy()[:, ::-1],
        ordinal.predict_proba(inputs[categories]), atol=1e-5,
    )  # fmt: skip
    found = hb.attacks.pgd(table.from_sklearn(linear), x, table.train.y, table.threat)
    after = table.rows(found.x_adv)  # with numbers and truth values where there were such
    assert after.dtypes.drop("job").tolist() == inputs.dtypes.drop("job").tolist()
    assert ((linear.predict(after) == "no") != (table.train.y == 1).numpy()).tolist() == found.success.tolist()
    with pytest.raises(hb.UserError, match="'late', which the table does not use"):
        table.from_sklearn(make_pipeline(clone(encoder), mlp()).fit(frame, frame["late"]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hauberk.evaluation.tabular_risk._QUERIES", 5)
    frame.to_csv("rows.csv", index=False)
    (tmp_path / "rows.toml").write_text('train = "rows.csv"\n' + SCHEMA)
    (tmp_path / "forest.pkl").write_bytes(pickle.dumps(forest))
    (tmp_path / "our_forest.py").write_text(
        "import pickle\nfrom hauberk.data import read_table\n"
        "def model():\n    return read_table('rows.toml').from_sklearn(pickle.load(open('forest.pkl', 'rb')))\n"
    )
    assert main(["evaluate", "forest.pkl", "--data", "rows.toml", "--quiet"]) == 2
    assert "is a pickle, which runs whatever code" in capsys.readouterr().err
    command = ["evaluate", "our_forest:model", "--data", "rows.toml", "--attacks", "random-100", "--n", "20", "--quiet"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING attacks-use-gradients: no attack by gradients ran, only random-100" in said
    assert "Of the class 'no': recall" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "X does not have valid feature names"
        table.from_sklearn(forest)(x[:3])
