"""What `pytest --pyargs conformance` collects. The options and fixtures are in `conformance/pytest_plugin.py`."""
