"""Runs in folders: train, load, evaluate, sample, replay and report."""
