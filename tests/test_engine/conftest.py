"""The sample data and tools of the tests that run them."""

from ..test_tools.conftest import data_folder, run_tool, sample_data

__all__ = ['data_folder', 'run_tool', 'sample_data']
