"""Carries fedlab's bytes over Flower."""
