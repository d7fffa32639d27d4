"""The list of a method's settings is read off its parts, and says the truth."""

import pytest
import torch

import hauberk as hb
from hauberk.methods import ADDITIONS, METHODS, default_settings
from hauberk.methods.registry import get_method_spec, method_settings
from hauberk.methods.settings import words_of


def buildable():
    for name in METHODS:
        for added in ("", *ADDITIONS):
            full = f"{name}+{added}" if added else name
            try:
                yield full, build(full)
            except hb.UserError:  # additions do not go with every method
                assert added


def build(name, **settings):
    threat = [hb.Linf(0.1), hb.L1(2)] if name.startswith(("e-at", "max-at", "ramp")) else hb.Linf(0.1)
    teacher = {"teacher": torch.nn.Linear(3, 3)} if get_method_spec(name).needs_teacher else {}
    return hb.method(name, threat, **teacher, **settings)


def test_saying_what_holds_anyway_changes_nothing():
    compared = 0
    for name, usual in buildable():
        said = build(name, **default_settings(name))
        assert said.burn_in == usual.burn_in, name
        for ours, other in zip(usual.parts, said.parts, strict=True):
            if " at 0x" not in repr(ours):
                assert repr(ours) == repr(other), name
                compared += 1
    assert compared > 500


def test_every_setting_that_is_listed_is_taken_and_no_other():
    for name in ("at", "mail-trades+awp", "gairat", "sabr", "mma", "uiat", "at+adr"):
        known = method_settings(name)
        for key in known:
            said = ""
            try:
                build(name, **{key: object()})
            except hb.UserError as error:
                said = str(error)
            assert "unknown setting" not in said, key
        with pytest.raises(hb.UserError, match="unknown setting"):
            build(name, nonsense=1)


def test_settings_follow_the_parts_that_are_given():
    assert method_settings("at")["slope"].default is None
    assert method_settings("mail-trades")["slope"].default == 2.0
    assert "slope" not in method_settings("mail-trades", weighting="ewat")
    assert "rho" in method_settings("at", weight_perturbation="sam")
    assert "steps" not in method_settings("at", attack=lambda context: context.x)
    assert method_settings("MART")["beta"].kind is float


def test_what_settings_are_is_said_in_words():
    known = method_settings("mail-trades")
    assert "trade-off" in known["beta"].about
    assert "pm-dif" in known["measure"].about
    assert words_of(known["measure"].kind) == "pm-adv|pm-nat|pm-dif|kappa|lps"
    assert (words_of(known["steps"].kind), words_of(known["slope"].kind), words_of(known["start"].kind)) == (
        "INT",
        "FLOAT",
        "VALUE",
    )
    silent = {key for name in METHODS for key, setting in method_settings(name).items() if not setting.about}
    assert len(silent) < 10, silent


def test_settings_of_a_method_of_ones_own_are_the_arguments_of_its_function():
    def build_mine(threat, strength: float = 2.0, **more):
        """Make it.

        Args:
            threat: what may be done.
            strength: how strong it is.
            **more: anything.
        """
        return hb.method("at", threat)

    hb.register_method("mine-of-settings", build_mine)
    try:
        (found,) = method_settings("mine-of-settings").values()
        assert (found.name, found.default, found.kind, found.about) == ("strength", 2.0, float, "how strong it is")
    finally:
        hb.methods.registry._BUILDERS.pop("mine-of-settings")
