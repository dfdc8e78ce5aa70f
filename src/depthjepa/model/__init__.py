"""The networks: encoder, predictor, heads, and the method that joins them."""
