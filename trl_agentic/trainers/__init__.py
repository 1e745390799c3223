"""Trainers: one per algorithm, on top of TRL's GRPOTrainer."""
