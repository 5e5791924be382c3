"""The table of benchmarks, and how a benchmark's YAML gets its module's types."""

from collections.abc import Sequence
from typing import Any, Final

from evaluate import detection, instances, knn, linear, segmentation, voc_svm
from evaluate.job import Benchmark
from zoo.benchmark import BenchmarkConfig, benchmark_path
from zoo.config import load, read_yaml
from zoo.errors import ConfigError

BENCHMARKS: Final[dict[str, Benchmark]] = {
    "knn": knn,
    "linear": linear,
    "detection": detection,
    "instance_segmentation": instances,
    "segmentation": segmentation,
    "voc_svm": voc_svm,
}


def load_benchmark(name: str, overrides: Sequence[str] = ()) -> BenchmarkConfig[Any, Any]:
    """configs/benchmarks/<name>.yaml with fully typed settings. Raises ConfigError listing all that is wrong."""
    path = benchmark_path(name)
    data = read_yaml(path)
    key = data.get("benchmark") if isinstance(data, dict) else None
    if key not in BENCHMARKS:
        raise ConfigError(f"{path}: benchmark: expected one of {', '.join(sorted(BENCHMARKS))}, found {key!r}")
    module = BENCHMARKS[key]
    return load(path, BenchmarkConfig[module.Settings, module.Execution], overrides=overrides)
