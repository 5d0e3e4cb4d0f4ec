"""Helpers that all packages use: files, inputs, modules, copies, registries."""
