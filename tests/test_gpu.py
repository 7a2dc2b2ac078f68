"""What needs a GPU; `benchmarks/gpu.py` runs these and measures. Its own parts are tested on any machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import fitted, small_config
from stage1.data.datasets import spread
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import NEEDED, Condition, raw
from stage1.evaluation.evaluate import evaluate
from stage1.evaluation.gate import check
from stage1.experiment import train_run
from stage1.progress import Progress
from stage1.session import Session

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LOSSES = ["prompt_ppl", "kl", "hidden", "answer_ce", "answer_kl"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_evaluations_are_equal_and_nothing_lost_changes_nothing(dtype: str) -> None:
    session = Session.open(small_config(f"dtype={dtype}", "device=cuda"), Progress())
    prompts = session.prompts(spread(session.data.test, 64))
    answering = Answering(session, None)
    text = Condition("text", prompts, None, None)
    first = answering.answers(text)
    assert answering.answers(text) == first
    assert answering.answers(Condition("raw", prompts, raw(session), None)) == first
    gate = check(answering, prompts)
    assert (gate.difference, gate.noise, gate.changed) == (0, 0, 0)
    evaluation = evaluate(
        fitted(session, "compressor=identity", "adapter=identity"), session, cache=None, rows=NEEDED
    )
    assert evaluation.predictions["bottleneck"] == evaluation.predictions["text"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_through_the_llm_are_finite(loss: str, tmp_path: Path) -> None:
    settings = ["dtype=bfloat16", "device=cuda", "train.steps=3", f"losses={{{loss}: 1}}"]
    config = small_config(*settings, f"output={tmp_path / 'run'}")
    train_run(config, Progress(), with_evaluation=False)  # raises where a gradient is not finite


@pytest.mark.gpu
@needs_gpu
def test_what_is_derived_from_the_table_is_where_the_table_is(tmp_path: Path) -> None:
    settings = ["adapter=codebook", "compressors=[sensitivity, pca]", "train.steps=0", "device=cuda"]
    config = small_config(*settings, f"output={tmp_path / 'run'}")
    run = train_run(config, Progress(), with_evaluation=False).run
    session = Session.open(config, Progress())
    rows = session.table[5:9].float()[None]
    loaded = session.load_bottleneck(run)
    assert torch.equal(loaded(rows, torch.ones(1, 4, dtype=torch.bool, device=rows.device)), rows)


@pytest.mark.slow
def test_the_script_runs_without_a_gpu(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    parts = "repeatability,gradients,throughput,phase2_step"
    command = [sys.executable, str(SCRIPT), "--questions", "4", "--shots", "1", "--parts", parts]
    subprocess.run([*command, "--output", str(output)], check=True, capture_output=True)
    record = json.loads(output.read_text())
    assert record["attention_backends"]["cudnn"] is False
    assert record["repeatability"]["changed"] == record["repeatability"]["raw_differs"] == 0
    assert record["gradients"] == dict.fromkeys(record["gradients"], "finite")
    assert set(record["gradients"]) >= set(LOSSES)
    assert record["throughput"]["questions_per_second"].keys() == {"text", "raw", "lm_eval"}
    assert record["phase2_step"]["seconds_per_step"] > 0
