"""Anybody's checkpoint in, canonical weights and a card out."""
