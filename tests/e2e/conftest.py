"""Fixtures of the tests of the window (see ``window_support``)."""

from window_support import _nothing_left_behind, answers, home, make_window, trained, trained_once, window

__all__ = ["_nothing_left_behind", "answers", "home", "make_window", "trained", "trained_once", "window"]
