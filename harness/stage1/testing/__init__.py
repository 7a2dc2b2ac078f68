"""Conformance suites: derive a test class from one, name your component, and pytest runs its checks."""

from stage1.bottleneck.chain import Chain as Chain
from stage1.testing.adapter import AdapterSuite as AdapterSuite
from stage1.testing.compressor import CompressorSuite as CompressorSuite
from stage1.testing.loss import LossSuite as LossSuite
from stage1.testing.runner import installed as installed
from stage1.testing.task import TaskSuite as TaskSuite
