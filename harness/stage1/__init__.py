"""stage1: how much can the input embeddings of a frozen Llama be squeezed before it stops answering?

Importing this package loads neither torch nor any plugin; the names below are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker

if TYPE_CHECKING:
    from stage1.api import Diagnosis as Diagnosis
    from stage1.api import Evaluated as Evaluated
    from stage1.api import compare as compare
    from stage1.api import diagnose as diagnose
    from stage1.api import evaluate as evaluate
    from stage1.api import frontier as frontier
    from stage1.api import questions as questions
    from stage1.api import report as report
    from stage1.api import sweep as sweep
    from stage1.api import train as train
    from stage1.api import verify as verify
    from stage1.bottleneck.bottleneck import Bottleneck as Bottleneck
    from stage1.bottleneck.statistics import least_squares as least_squares
    from stage1.bottleneck.statistics import nearest_rows as nearest_rows
    from stage1.errors import ConfigError as ConfigError
    from stage1.errors import ConfigIssue as ConfigIssue
    from stage1.errors import UsageError as UsageError
    from stage1.inspection.compare import Compared as Compared
    from stage1.inspection.listing import Listed as Listed
    from stage1.inspection.listing import list_runs as list_runs
    from stage1.inspection.questions import Asked as Asked
    from stage1.inspection.verify import Verified as Verified
    from stage1.llm.chunked import token_cross_entropy as token_cross_entropy
    from stage1.llm.chunked import token_kl as token_kl
    from stage1.plugins.executors import Executor as Executor
    from stage1.plugins.executors import Job as Job
    from stage1.plugins.executors import JobOutcome as JobOutcome
    from stage1.plugins.executors import JobWork as JobWork
    from stage1.plugins.interfaces import Adapter as Adapter
    from stage1.plugins.interfaces import ComponentConfig as ComponentConfig
    from stage1.plugins.interfaces import Compressor as Compressor
    from stage1.plugins.interfaces import Dataset as Dataset
    from stage1.plugins.interfaces import Encode as Encode
    from stage1.plugins.interfaces import Loss as Loss
    from stage1.plugins.interfaces import Model as Model
    from stage1.plugins.interfaces import SizeConfig as SizeConfig
    from stage1.plugins.tensors import Code as Code
    from stage1.plugins.tensors import Derived as Derived
    from stage1.plugins.tensors import LLMOutputs as LLMOutputs
    from stage1.plugins.tensors import LossInputs as LossInputs
    from stage1.plugins.tensors import TokenStats as TokenStats
    from stage1.plugins.tensors import straight_through as straight_through
    from stage1.plugins.trackers import Tracker as Tracker
    from stage1.progress import SILENT as SILENT
    from stage1.progress import Progress as Progress
    from stage1.reports.frontier import Frontier as Frontier
    from stage1.runs.results import Results as Results

__version__ = "0.1.0"

hookimpl = HookimplMarker("stage1")
"""Marks a plugin's function as the implementation of the hook of the same name."""

_HOME = {
    name: module
    for module, names in {
        "api": "train evaluate diagnose sweep compare questions verify report frontier Evaluated Diagnosis",
        "runs.results": "Results",
        "reports.frontier": "Frontier",
        "inspection.compare": "Compared",
        "inspection.questions": "Asked",
        "inspection.listing": "list_runs Listed",
        "inspection.verify": "Verified",
        "plugins.interfaces": "Compressor Adapter Loss Dataset Model ComponentConfig SizeConfig Encode",
        "plugins.trackers": "Tracker",
        "plugins.executors": "Executor Job JobOutcome JobWork",
        "plugins.tensors": "Code TokenStats LossInputs LLMOutputs Derived straight_through",
        "bottleneck.statistics": "least_squares nearest_rows",
        "bottleneck.bottleneck": "Bottleneck",
        "llm.chunked": "token_cross_entropy token_kl",
        "progress": "Progress SILENT",
        "errors": "UsageError ConfigError ConfigIssue",
    }.items()
    for name in names.split()
}
"""Name → the module in which it is found when it is first used."""

__all__ = ["__version__", "hookimpl", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"stage1.{_HOME[name]}"), name)
    raise AttributeError(f"module 'stage1' has no attribute {name!r}")
