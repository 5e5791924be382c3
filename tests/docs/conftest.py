"""The tiny world of the evaluation tests."""

from tests.evaluate.conftest import tiny, tiny_files  # noqa: F401
