"""From names and options to classes: everything wrong is found at once, nothing is lost on the way."""

import json

import pytest

from plugin_sites import Site, compressor, configured, issues
from stage1.config import validate
from stage1.plugins import Registry, fully_resolved, load_plugins, resolve


def test_names_become_classes_and_options_are_validated() -> None:
    config = configured("compressor.dim=4", "adapter.depth=2", losses={"recon": 2, "stage1:cosine": 0.5})
    resolved = resolve(config, load_plugins())
    assert resolved.compressors[0].cls.name == "pca"
    assert resolved.compressors[0].config.model_dump() == {"ratio": 8.0, "dim": 4}
    assert resolved.adapter.config.model_dump()["depth"] == 2
    weights = {name: (loss.cls.name, loss.weight) for name, loss in resolved.losses.items()}
    assert weights == {"recon": ("recon", 2.0), "stage1:cosine": ("cosine", 0.5)}


def test_every_issue_of_every_plugin_is_reported_at_once() -> None:
    config = configured(
        compressor={"name": "pca", "dimm": 4, "ratio": 0.5},
        adapter="residuall",
        losses={"cosinee": 1, "recon": {"epsilon": 3}},
    )
    found = issues(config, load_plugins())
    assert set(found) == {
        "compressor.dimm",
        "compressor.ratio",
        "adapter",
        "losses.cosinee",
        "losses.recon.epsilon",
    }
    assert "'dim'?" in found["compressor.dimm"]
    assert "Choices: dim, ratio" in found["compressor.dimm"]
    assert "'residual'?" in found["adapter"]
    assert "Choices: codebook" in found["adapter"]
    assert "'cosine'?" in found["losses.cosinee"]


def test_a_plugins_own_check_that_raises_is_attributed(site: Site) -> None:
    body = """
        class Config(SizeConfig):
            from pydantic import field_validator
            k: int = 3
            @field_validator("k")
            @classmethod
            def check(cls, value):
                return {}[value]
    """
    site.install("checker", {"point": compressor("keep", body=body)}, release="7.0")
    registry = site.load()
    [(path, message)] = issues(configured("compressor.k=1", compressor="keep"), registry).items()
    assert path == "compressor"
    assert "checker 7.0" in message
    assert "KeyError: 1" in message


POOL = compressor("pool", body="changes_length = True; tokenwise = False")
MIX = compressor("mix", body="tokenwise = False")
GLOBAL_LOSS = '''
    import stage1

    class Overall(stage1.Loss):
        """Looks at the whole."""
        name = "overall"
        requires_same_length = False
        def forward(self, inputs):
            return inputs.reconstruction.mean()

    @stage1.hookimpl
    def stage1_losses():
        return Overall
'''


def test_combinations_that_make_no_sense_are_refused_with_what_would_go(site: Site) -> None:
    site.install("lengths", {"pool": POOL, "mix": MIX})
    registry = site.load()
    config = configured("magnitude=sent", "losses.cosine=1", compressor="pool", adapter="codebook")
    found = issues(config, registry)
    assert set(found) == {"adapter", "losses.recon", "losses.cosine", "magnitude"}
    for path in ("losses.recon", "losses.cosine", "magnitude"):
        assert "'pool' changes the length" in found[path]
        assert "a compressor that keeps the length (" in found[path]
        assert " mix, pca, " in found[path]
    assert "another loss (answer_ce, answer_kl, hidden, kl)" in found["losses.recon"]
    assert "(free, vocab)" in found["magnitude"]
    assert "a token-wise compressor (" in found["adapter"]
    assert "learned_linear, pca, " in found["adapter"]
    assert "residual" in found["adapter"]


def test_an_order_dependent_compressor_rules_out_only_what_needs_token_wise(site: Site) -> None:
    site.install("lengths", {"mix": MIX})
    registry = site.load()
    assert set(issues(configured(compressor="mix", adapter="codebook"), registry)) == {"adapter"}
    assert resolve(configured("magnitude=sent", compressor="mix"), registry)


def test_a_loss_that_compares_no_positions_goes_with_any_compressor(site: Site) -> None:
    site.install("lengths", {"pool": POOL})
    site.install("whole", {"point": GLOBAL_LOSS})
    registry = site.load()
    assert resolve(configured(compressor="pool", losses={"overall": 1}), registry)
    assert (
        "another loss (answer_ce, answer_kl, hidden, kl, overall)"
        in issues(configured(compressor="pool"), registry)["losses.recon"]
    )


def test_combinations_are_checked_beside_other_issues(site: Site) -> None:
    site.install("lengths", {"pool": POOL})
    config = configured("compressor.dimm=1", compressor="pool", adapter="nothing")
    assert set(issues(config, site.load())) == {"compressor.dimm", "adapter", "losses.recon"}


# -- the fully resolved configuration -----------------------------------------------------------------


@pytest.mark.parametrize("compressor_name", load_plugins().names("compressor"))
@pytest.mark.parametrize("adapter_name", load_plugins().names("adapter"))
def test_a_resolved_configuration_names_every_option_and_means_the_same(
    compressor_name: str, adapter_name: str
) -> None:
    registry = load_plugins()
    losses = dict.fromkeys(registry.names("loss"), 0.3)
    config = configured(compressor=compressor_name, adapter=adapter_name, losses=losses, seed=5)
    resolved = resolve(config, registry)
    whole = fully_resolved(config, resolved)
    assert set(whole.compressors[0].options) == set(resolved.compressors[0].cls.Config.model_fields)
    assert set(whole.adapter.options) == set(resolved.adapter.cls.Config.model_fields)
    assert (whole.seed, whole.compressors[0].name, set(whole.losses)) == (5, compressor_name, set(losses))
    again = validate(json.loads(whole.model_dump_json()))
    assert again == whole
    assert resolve(again, registry) == resolved
    assert fully_resolved(again, resolve(again, registry)) == whole


def test_options_of_every_sort_survive_the_run_directory(rich: Registry) -> None:
    settings = [
        "compressor.must=3",
        "compressor.colour=blue",
        "compressor.size.width=5",
        "compressor.lambda=2",
    ]
    config = configured(*settings, "compressor.folder=a/b", compressor="rich")
    resolved = resolve(config, rich)
    whole = fully_resolved(config, resolved)
    assert whole.compressors[0].options == {
        "ratio": 8.0,
        "dim": None,
        "must": 3,
        "colour": "blue",
        "size": {"width": 5},
        "steps": [1.0],
        "folder": "a/b",
        "kind": "a",
        "lambda": 2.0,
        "free": None,
    }
    assert resolve(validate(json.loads(whole.model_dump_json())), rich) == resolved


def test_issues_inside_nested_options(rich: Registry) -> None:
    settings = [
        "compressor.size.widht=5",
        "compressor.colour=green",
        "compressor.kind=c",
        "compressor.steps=[]",
    ]
    found = issues(configured(*settings, compressor="rich"), rich)
    assert set(found) == {
        "compressor.must",
        "compressor.size.widht",
        "compressor.colour",
        "compressor.kind",
        "compressor.steps",
    }
    assert found["compressor.must"] == "Field required."
    assert "'width'?" in found["compressor.size.widht"]
