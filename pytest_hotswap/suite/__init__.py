"""The contract, ready to run: pytest --pyargs pytest_hotswap.suite."""
