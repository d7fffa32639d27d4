import io

import pytest
from rich.console import Console

from hauberk.core import progress
from hauberk.core.progress import ProgressBar


@pytest.fixture
def terminal(monkeypatch):
    text = io.StringIO()

    def console(**settings):
        return Console(**settings, force_terminal=True, file=text, width=100)

    monkeypatch.setattr(progress, "Console", console)
    return text


def test_a_bar_within_a_bar_is_shown_below_it(terminal):
    with ProgressBar("outer", 10) as outer:
        with ProgressBar("inner", 4) as inner:
            inner.advance(3, "inner")
            inner.reach(0.5, "half of it")
            assert [task.description for task in outer._progress.tasks] == ["outer", "half of it"]
            outer._progress.refresh()
        assert [task.description for task in outer._progress.tasks] == ["outer"]
        outer.advance(5, "outer goes on")
        outer._progress.refresh()
        assert outer._progress.live.is_started
    assert not outer._progress.live.is_started
    assert not progress._SHOWN
    shown = terminal.getvalue()
    assert "half of it" in shown
    assert "outer goes on" in shown


def test_a_bar_that_fails_takes_none_with_it(terminal):
    with ProgressBar("outer", 10) as outer:
        with pytest.raises(KeyboardInterrupt), ProgressBar("inner", 4):
            raise KeyboardInterrupt
        assert outer._progress.live.is_started
    with ProgressBar("next", 1) as following:
        assert following._progress is not outer._progress


def test_a_quiet_bar_shows_nothing(terminal):
    with ProgressBar("outer", 10, quiet=True), ProgressBar("inner", 4, quiet=True) as inner:
        inner.reach(0.5, "half of it")
        inner.line("a line")
    assert not terminal.getvalue()
    assert not progress._SHOWN
