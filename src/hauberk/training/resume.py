"""Going on with a run from what its folder says, as ``hauberk train --resume`` does."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hauberk.core.arguments import shown
from hauberk.core.distributed import get_world
from hauberk.core.errors import SCHEMA_ERRORS, UserError, in_one_line
from hauberk.core.imports import trusted_name
from hauberk.core.io import json_roundtrip
from hauberk.data import load_data
from hauberk.data.standard_subset import first_examples
from hauberk.methods import method as make_method
from hauberk.methods.parts import FROM_PYTHON
from hauberk.methods.registry import find_method
from hauberk.models import ModelSpec
from hauberk.threat import read_threat
from hauberk.training import checkpoint
from hauberk.training.config import TrainConfig
from hauberk.training.config_file import every_setting
from hauberk.training.extra import load_extra
from hauberk.training.plan import require_named
from hauberk.training.train import Run, pick_device, train


def resume(
    folder: str | Path,
    *,
    model: str = "",
    method: str = "",
    hyperparameters: Mapping[str, Any] = MappingProxyType({}),
    data: str = "",
    data_dir: str = "",
    optimizer: str = "",
    scheduler: str = "",
    augment: str = "",
    callbacks: Iterable[str] = (),
    extra: str = "",
    extra_labels: str = "",
    init: str = "",
    verify: bool = True,
    quiet: bool = False,
    on_divergence: str = "",
) -> Run:
    """Go on with a run on a named data set and a named model, all of it read from the run's folder.

    What is named must be what the run was started with; only where files are may differ.

    Args:
        folder: of the run.
        model: ``module:factory``, where the run was made with one: naming it again allows importing it.
        method: its import path, where it was named so, likewise.
        hyperparameters: those of the method that are import paths, likewise.
        data: ``module:attribute``, where the data set was named so, likewise.
        data_dir: the folder of the data, where they are elsewhere now.
        optimizer: its import path, likewise.
        scheduler: its import path, likewise.
        augment: its import path, likewise.
        callbacks: the import paths of all, likewise.
        extra: the file of the extra data, where it is elsewhere now.
        extra_labels: the network that labelled them, likewise.
        init: the weights that the run was begun from, likewise.
        verify: compare checksums of the data files with the original ones.
        quiet: print nothing but warnings, on stderr.
        on_divergence: as in ``TrainConfig``, where it should be another than the run was started with.

    Raises:
        UserError: if the folder holds no run, or one that only Python can resume; and as :func:`train`.
    """
    stored = get_world().on_main_process(lambda: checkpoint.read_record(Path(folder)))
    spec = ModelSpec.from_dict(stored.get("model", {}))
    again = "go on with hb.train(model, data, ..., resume=True), and what was passed then"
    if spec.is_from_python:
        raise UserError(f"the model of {folder} was made in Python; {again}")
    if spec.imports and spec.name != model:
        raise UserError(f"this run would import {spec.name!r}; add --model {spec.name} if you trust it")
    try:
        trained_on, made_of = stored["data"], dict(stored["method"])
        settings = dict(stored["settings"]) | ({"on_divergence": on_divergence} if on_divergence else {})
        if trained_on.get("val_digest"):
            raise UserError(f"the validation data of this run were passed in Python; {again}")
        if not trained_on.get("extra"):
            settings.pop("extra_share", None)
        elif not (extra or trained_on.get("extra_file")):
            raise UserError(f"the extra data of this run were passed in Python; {again}")
        for name in ("milestones", "decay_rate", "class_weights", "callbacks"):
            if isinstance(settings.get(name), list):
                settings[name] = tuple(settings[name])
        named = {"optimizer": [optimizer], "scheduler": [scheduler], "augment": [augment], "callbacks": list(callbacks)}
        require_named(TrainConfig(**settings), named, again)
        data_name = trusted_name(str(trained_on["name"]), data, "--data ")
        name = trusted_name(str(made_of.pop("name")), method, "--method ")
        for key, value in made_of.items():
            if str(value).startswith(FROM_PYTHON):
                raise UserError(f"the {key} of the method was made in Python; {again}")
            trusted_name(str(value), str(hyperparameters.get(key, "")), f"--set {key}=")
        given = {"model": model, "data": data, "method": method and find_method(method), "callbacks": tuple(callbacks)}
        given |= {"optimizer": optimizer, "scheduler": scheduler, "augment": augment, **hyperparameters}
        started = {**settings, "model": spec.name, "data": data_name, "method": name}
        if hyperparameters:
            started |= every_setting(name, made_of.get("preset", "paper"), made_of)
        for key, value in given.items():
            if value not in ("", ()) and json_roundtrip(value) != json_roundtrip(started.get(key)):
                raise UserError(f"{folder} was started with another {key} than {shown(value)}; leave it out")
        source = load_data(data_name, "train", data_dir or trained_on["folder"], verify=verify)
        source = first_examples(source, int(trained_on.get("train_size") or 0))
        more: dict[str, Any] = {"init": init or str(stored["model"].get("init", ""))}
        if file := extra or str(trained_on.get("extra_file", "")):
            labeller, place = extra_labels or str(trained_on.get("extra_labels", "")), pick_device(str(settings["device"]))
            more["extra"] = load_extra(file, source.classes, labeller=labeller, device=place)
        made = make_method(name, read_threat(stored["threat"]), **made_of)
    except UserError:
        raise
    except SCHEMA_ERRORS as error:
        raise UserError(f"{folder}/run.json is damaged: {in_one_line(error)}") from error
    return train(spec, source, method=made, out=folder, resume=True, quiet=quiet, **more, **settings)
