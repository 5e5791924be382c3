"""What is refused before an engine is started."""

import pytest

from engines.launch import Name
from evaluate.engine import refuse_uneven
from evaluate.scaling import BATCH, set_value
from zoo.errors import ConfigError


@pytest.mark.parametrize("name", ["detectron2", "mmseg"])
def test_a_global_batch_is_shared_equally(name: Name) -> None:
    config: dict[str, object] = {BATCH[name].split(".")[0]: {}}
    set_value(config, BATCH[name], 12)
    for procs in (1, 2, 3, 4, 6, 12):
        refuse_uneven(name, config, procs)
    with pytest.raises(
        ConfigError, match=rf"--procs 8: expected a divisor of the global batch, 12 images a step \({BATCH[name]}\)"
    ) as caught:
        refuse_uneven(name, config, 8)
    assert str(caught.value).endswith("choose among 1, 2, 3, 4, 6, 12.") and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--procs 24"):
        refuse_uneven(name, config, 24)
