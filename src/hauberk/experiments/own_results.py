"""A table of evaluations that are there already, whatever loop trained what they are of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hauberk.core.arguments import checked, shown
from hauberk.core.errors import SCHEMA_ERRORS, UserError, find_name, in_one_line
from hauberk.core.io import read_json
from hauberk.evaluation import Evaluation
from hauberk.evaluation.result import FORMAT
from hauberk.experiments.comparison import Comparison, list_doubts
from hauberk.experiments.paired_tests import CERTIFIED, CLEAN, WORST, accuracy, count_discordant

_EXAMPLES, _CONSTRAINTS = "test examples in the same order", "box and constraints in the threat model"
_UNSAID = (_EXAMPLES, _CONSTRAINTS)  # long lists, or digests


@dataclass(frozen=True)
class _Result:
    """What an evaluation has found, as :meth:`Evaluation.to_dict` returns it, and what it is called in a message."""

    called: str
    found: dict[str, Any]


@checked
def compare_results(results: Mapping[str, Any], *, baseline: str = "", seeds: Sequence[int] = ()) -> Comparison:
    """Set evaluations side by side that you have made, of networks trained by any loop.

    Every method has as many evaluations as the others, each of a network that was trained with another seed; the first ones of
    all methods belong together, the second ones, and so on. With several, differences to the baseline get a paired t-test over
    them. With one of each, they get McNemar's (1947) exact test over the test examples: of the b + c examples that only one of
    the two networks has right, b by this one and c by the other, ``p = min(1, 2 P(Binomial(b + c, 1/2) ≤ min(b, c)))``.
    This is about the two networks, and says nothing of how another training of the same methods would end. The p-values of
    several differences are adjusted by Holm's procedure. A number in ``doubts`` of the result is to be looked at before it is
    shown to anybody.

    Args:
        results: by the name of each method, its evaluations, or one of them: an :class:`Evaluation`, or the path of what
            :meth:`Evaluation.save` wrote.
        baseline: the method that the others' differences are to; by default the first.
        seeds: of the trainings, in the order of the evaluations; by default counted from 0.

    Returns:
        Comparison; print it, or take its ``table()``, ``figure()``, or :meth:`Comparison.save` all of them in a folder.

    Raises:
        UserError: for a file that is no evaluation; for evaluations that cannot be compared: of other test examples (the
            number of them, inputs, labels, and their order), threat models, suites or attacks; for the same network twice in
            one method; and where methods have not equally many evaluations.
    """
    if len(results) < 2 or not all(isinstance(name, str) and name.strip() for name in results):
        raise UserError('results needs two methods at least, each with its evaluations: {"at": [...], "mine": [...]}')
    methods, base = tuple(results), find_name("baseline", baseline, results) if baseline else next(iter(results))
    read = {name: _read_all(name, given) for name, given in results.items()}
    count = len(read[methods[0]])
    for name, some in read.items():
        if len(some) != count:
            raise UserError(
                f"{methods[0]!r} has {count} evaluation(s), {name!r} has {len(some)}; give as many of each, "
                "one for each seed, in the same order, so that differences can be paired"
            )
    numbers = tuple(seeds) or tuple(range(count))
    if len(numbers) != count or len(set(numbers)) != count:
        raise UserError(f"seeds needs a number for each of the {count} evaluation(s) of a method, all different, got {seeds}")
    try:
        return _compared(read, base, numbers)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"an evaluation is damaged: {in_one_line(error)}") from error


def _compared(read: Mapping[str, Sequence[_Result]], base: str, seeds: Sequence[int]) -> Comparison:
    every = [result for some in read.values() for result in some]
    first = every[0].found
    for other in every[1:]:
        _require_alike(every[0], other)
    for some in read.values():
        _require_other_networks(some)
    columns = (CLEAN, *first["by_attack"])
    if all(result.found["certified"] for result in every):
        columns = (CLEAN, CERTIFIED, *columns[1:])
    if not all(result.found["by_attack"].get("autoattack") == result.found["robust_accuracy"] for result in every):
        columns = (*columns, WORST)
    values = {
        name: {column: tuple(100 * accuracy(result.found, column) for result in some) for column in columns}
        for name, some in read.items()
    }
    baselines = {name: base for name in read if name != base}
    discordant = {}
    if len(seeds) == 1:
        files = {name: some[0].found for name, some in read.items()}
        discordant = {column: count_discordant(files, baselines, column) for column in (CLEAN, columns[-1])}
    n, suite = int(first["n"]), first["suite"]
    attacked = f"suite {suite}" if suite != "custom" else "own attacks"
    trained = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    data, threat = first["provenance"]["data"], first["threat"]
    about = f"{data}, {threat}, {attacked}, {trained}, {n:,} test examples"
    doubts = {name: list_doubts([result.found for result in some]) for name, some in read.items()}
    return Comparison(
        about, tuple(read), seeds, columns, values, doubts, {}, baselines, n=n, discordant=discordant, data=data, threat=threat
    )


def _read_all(name: str, given: Any) -> list[_Result]:
    """Read the evaluations of one method."""
    some = [given] if isinstance(given, Evaluation | str | PathLike) else given
    if isinstance(some, Mapping) or not isinstance(some, Iterable) or not (some := list(some)):
        raise UserError(f"{name!r} needs evaluations, or the paths of saved ones, got {shown(given)}")
    return [_read(name, k, one) for k, one in enumerate(some)]


def _read(name: str, k: int, one: Any) -> _Result:
    if isinstance(one, Evaluation):
        return _Result(f"{name}[{k}]", one.to_dict())
    if not isinstance(one, str | PathLike):
        raise UserError(f"{name!r} needs evaluations, or the paths of saved ones, got {shown(one)}")
    path = Path(one) / "evaluation.json" if Path(one).is_dir() else Path(one)
    found = read_json(path)
    if found.get("format") != FORMAT:
        raise UserError(f"{path} is no evaluation: its format is {shown(found.get('format'))}, not {FORMAT!r}")
    return _Result(str(path), found)


def _require_alike(one: _Result, other: _Result) -> None:
    """Refuse evaluations whose numbers do not mean the same."""
    for (what, ours), (_, theirs) in zip(_protocol(one.found), _protocol(other.found), strict=True):
        if ours != theirs and None not in (ours, theirs):
            seen = "" if what in _UNSAID else f" ({_words(ours)} and {_words(theirs)})"
            raise UserError(f"{one.called} and {other.called} cannot be compared: they do not have the same {what}{seen}")


def _protocol(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """What has to be the same, with what it is called in a message; None where a file does not say it."""
    origin = found["provenance"]
    return [
        ("number of test examples", f"{found['n']:,}"),
        (_EXAMPLES, [example["label"] for example in found["examples"]]),
        (_EXAMPLES, origin.get("data_digest")),
        ("threat model", found["threat"]),
        (_CONSTRAINTS, origin.get("threat_digest")),
        ("suite", found["suite"]),
        ("attacks", list(found["by_attack"])),
        ("settings of the attacks", [origin["attacks"].get(name) for name in found["by_attack"]]),
        ("way of running attacks", "in sequence" if found["sequential"] else "each on all examples"),
        ("kind of robust accuracy", "without rejection" if found["detection"] is None else "with rejection"),
    ]


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)[:120]


def _require_other_networks(some: Sequence[_Result]) -> None:
    """Refuse one network twice, which would be no second training."""
    seen: dict[Any, _Result] = {}
    for result in some:
        network = result.found["provenance"].get("model_id")
        if network and network in seen:
            raise UserError(
                f"{seen[network].called} and {result.called} are of the same network: a seed is another training, "
                "not another evaluation"
            )
        seen[network] = result
