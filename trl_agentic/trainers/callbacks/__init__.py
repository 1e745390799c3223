"""Callbacks that every trainer of this package installs."""
