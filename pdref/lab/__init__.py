"""What the library is for: train, evaluate, measure, draw, and check that the machine is fit for it."""
