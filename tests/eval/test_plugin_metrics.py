"""Metrics of plug-ins: measured as ours are, and listed as unavailable where they are not right."""

import pytest
import torch
from plugin_packages import method_package, the_one

from dmqbench.config.plugin_code import metric_origin
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.registry import metric_of

SETTINGS = MetricsConfig(names=("contrast",), pairs=2, samples=2)


def test_a_metric_of_a_plug_in_says_whose_code_it_is(site):
    method_package(site, "wide", "mul_(2)")
    the_one()
    metric = metric_of("contrast", SETTINGS, "cpu")
    assert (metric.name, metric.version, metric.tool) == ("contrast", 1, metric_origin("contrast"))
    images = torch.tensor([0, 100], dtype=torch.uint8).reshape(1, 1, 1, 2).expand(2, 1, 1, 2)
    expected = 2 * images[0].double().std().item()
    assert metric.per_image(images, images) == pytest.approx([expected, expected])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("import torch", "import nothing_of_this_name", "ModuleNotFoundError"),
        ("METRIC =", "METRICK =", "AttributeError"),
        ("METRIC =", "raise SystemExit(3)\nMETRIC =", "SystemExit: 3"),
        ('"contrast", True', '"psnr", True', "is no PairedMetric of the name contrast"),
        ("METRIC =", "METRIC = 3 or", "is no PairedMetric of the name contrast"),
    ],
)
def test_one_that_is_not_right_is_unavailable_in_one_line(site, old, new, reason):
    module = method_package(site, "wide", "mul_(2)") / "metrics" / "contrast.py"
    module.write_text(module.read_text().replace(old, new))
    the_one()
    with pytest.raises(MetricUnavailable) as unavailable:
        metric_of("contrast", SETTINGS, "cpu")
    assert reason in str(unavailable.value) and "plug-in wide" in str(unavailable.value)
    assert "\n" not in str(unavailable.value)
