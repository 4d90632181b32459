"""What can be proved, computed exactly: numpy only, no model, no training."""
