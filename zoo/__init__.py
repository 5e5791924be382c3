"""The shared nouns of TransferZoo: configs, checkpoints, datasets, records. A leaf of the import order."""

import os

# Compute threads share the cores with loader workers. By default an idle OpenMP thread spins, which on a busy machine
# starves those workers (ResNet-18 inference beside two busy processes: 46 images/s spinning, 240 sleeping). OpenMP
# reads this once, when torch is loaded, so it stands where every entry point passes first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
