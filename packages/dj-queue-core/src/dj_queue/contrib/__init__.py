"""Doors that keep promised import paths; what is behind them is installed apart."""
