"""From finished rollouts to tensors: turn batches for credit assignment, training sequences, micro-batches."""
