"""Which metrics, weights and models this machine has, for the doctor. Imports no torch, downloads nothing."""

from collections.abc import Iterator
from pathlib import Path

from dmqbench.config.plugins import metrics as known_metrics
from dmqbench.config.schema import MetricsConfig
from dmqbench.eval.packaged_weights import effnet_weights
from dmqbench.eval.protocol import MetricUnavailable
from dmqbench.eval.weights import (
    LPIPS_BACKBONE_FILES,
    WEIGHT_FILES,
    WeightFile,
    find,
    inception_file,
    torch_checkpoints,
)
from dmqbench.launch.findings import ABSENT, BROKEN, OK, Finding
from dmqbench.models.families import families
from dmqbench.models.folders import EMBEDDED, ModelError, ModelSource, network_folder
from dmqbench.models.location import locate
from dmqbench.models.packaged.catalogue import PACKAGED
from dmqbench.models.weight_files import weight_files
from dmqbench.store.packages import NotInstalled, packaged_file


def metrics(settings: MetricsConfig) -> Iterator[Finding]:
    """Whether each metric can be computed here, with the default settings, without downloading anything."""
    for name in known_metrics():
        try:
            detail = _measured_with(name, settings)
        except MetricUnavailable as reason:
            brief = f"needs {settings.clip} → hf download {settings.clip}, or metrics.clip" if name == "clip" else ""
            yield Finding("metrics", name, ABSENT, *_split(str(reason)), brief=brief)
        except (OSError, ModelError) as error:
            yield Finding("metrics", name, BROKEN, " ".join(str(error).split()))
        else:
            yield Finding("metrics", name, OK, detail)


def _split(reason: str) -> tuple[str, str]:
    """Return what is missing, and how to get it."""
    problem, _, advice = reason.partition("; ")
    return problem, advice


def _measured_with(name: str, settings: MetricsConfig) -> str:
    """Return what ``name`` is computed with; MetricUnavailable if that is not here."""
    if known_metrics()[name].features == "digits":
        return _classifier()
    if known_metrics()[name].features == "effnet":
        return effnet_weights().name
    if name == "clip":
        from dmqbench.eval.clip import locate_clip

        return str(locate_clip(settings))
    file = weight_file(name, settings)
    if file is None:
        return "needs no weights"
    located = find(file, settings)
    if located is None:
        raise MetricUnavailable(f"needs {file.name}, {file.size}")
    return located.path.name


def weight_file(metric: str, settings: MetricsConfig) -> WeightFile | None:
    """Return the file that a metric other than ``clip`` needs under these settings; None if it needs none."""
    if metric == "lpips":
        return LPIPS_BACKBONE_FILES[settings.lpips]
    features = known_metrics()[metric].features
    if features not in ("inception", "adm"):
        return None
    return inception_file("adm" if features == "adm" else settings.inception)


def weights(settings: MetricsConfig) -> Iterator[Finding]:
    """Every file of weights that some metric needs under some settings."""
    place = settings.weights or str(torch_checkpoints())
    yield Finding("weights", "looked for in", OK, f"{place}, which metrics.weights can change")
    for file in WEIGHT_FILES:
        facts = {"sha256": file.sha256, "bytes": file.size_bytes, "url": file.url, "metrics": list(file.metrics)}
        about = f"{file.size}, sha256 {file.sha256[:12]}…, for {', '.join(file.metrics)}"
        try:
            located = find(file, settings)
        except MetricUnavailable as reason:
            yield Finding("weights", file.name, ABSENT, *_split(str(reason)), facts)
            continue
        if located is None:
            detail = f"not in {place}, which metrics.weights can change; {about}"
            brief = f"{file.size}, for {', '.join(file.metrics)} → {file.url}"
            yield Finding("weights", file.name, ABSENT, detail, f"get {file.url}", facts, brief)
        else:
            detail = f"{located.path}{', a stand-in' if located.stand_in else ''}; {about}"
            yield Finding("weights", file.name, OK, detail, facts={**facts, "path": str(located.path)})


def _classifier() -> str:
    """Return the name of the shipped classifier's file, if it is whole."""
    from safetensors import SafetensorError, safe_open

    path = EMBEDDED / "digits_classifier.safetensors"
    try:
        with safe_open(path, framework="np"):
            return path.name
    except SafetensorError as error:
        raise ModelError(f"{path}: truncated or not a safetensors file ({error}); install dmqbench again") from None


def models() -> Iterator[Finding]:
    """Which models run: embedded ones, those in packages, classes of one's own, and where those of the hub are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    for name in sorted(path.name for path in EMBEDDED.iterdir() if path.is_dir()):
        source = ModelSource("embedded", name)
        try:
            files = weight_files(network_folder(locate(source)), source.advice)
        except ModelError as error:
            yield Finding("models", name, BROKEN, str(error), "install dmqbench again")
        else:
            mib = sum(path.stat().st_size for path in files) / 2**20
            yield Finding("models", name, OK, f"embedded, whole, {mib:.1f} MiB", brief="whole")
    for name, known in PACKAGED.items():
        try:
            packaged_file(known.package, known.file, known.sha256)
        except (NotInstalled, ValueError):
            needs = f"needs {known.distribution}"
            yield Finding("models", name, ABSENT, needs, known.installation, brief=needs)
        else:
            yield Finding("models", name, OK, f"in {known.distribution}, whole", brief="whole")
    classes = ", ".join(dict.fromkeys(family.network for family in families()))
    kinds = f"{classes} with model=local or model=hub; other classes are refused"
    yield Finding("models", "your own", OK, kinds, brief=f"{classes} for model=local, model=hub")
    count = len(list(Path(HF_HUB_CACHE).glob("models--*")))
    detail = f"{HF_HUB_CACHE}, {count} repositories{', offline (HF_HUB_OFFLINE)' if HF_HUB_OFFLINE else ''}"
    yield Finding("models", "hub cache", OK if count else ABSENT, detail, facts={"repositories": count})
