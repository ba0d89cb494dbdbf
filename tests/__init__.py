"""Tests of the tree. This file makes them a package: torch-fidelity installs one of the same name, which would hide a plain folder."""
