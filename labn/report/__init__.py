"""Figures of a run: maps, curves, confusion matrix and training history."""

from __future__ import annotations

from labn.report.confusion import confusion_figure
from labn.report.curves import MethodCurves, method_curves_figure
from labn.report.history import history_figure
from labn.report.maps import attention_sheet, examples_figure, overlay
from labn.report.reliability import reliability_figure
from labn.report.style import save_figure

__all__ = [
    "MethodCurves",
    "attention_sheet",
    "confusion_figure",
    "examples_figure",
    "history_figure",
    "method_curves_figure",
    "overlay",
    "reliability_figure",
    "save_figure",
]
