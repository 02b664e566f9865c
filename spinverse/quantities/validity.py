"""Warnings that a derived quantity is outside the range where its formula holds."""

from __future__ import annotations


class ValidityWarning(UserWarning):
    """A quantity was computed, but an assumption of its formula does not hold well."""


class FitWarning(ValidityWarning):
    """The signals do not determine what was fitted to them: range of b, noise, or model."""
