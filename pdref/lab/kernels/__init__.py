"""What one does with the ops: pose them problems, hold them to their definition, time them, look into the kernels."""
