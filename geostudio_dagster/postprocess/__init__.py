"""What people look at beside the prediction: the input in colour, and figures."""
