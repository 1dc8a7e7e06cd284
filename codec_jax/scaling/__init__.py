"""Scaling laws of codecs: a ladder of sizes, sweeps over it, and what is fitted to them."""
