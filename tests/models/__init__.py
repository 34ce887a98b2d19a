"""Tests of the models layer; a package, so that its files may share the tiny base in conftest."""
