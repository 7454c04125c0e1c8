"""Tests of the plasma store through Python: real store processes, killed clients and killed stores."""
