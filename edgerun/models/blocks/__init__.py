"""What layers are made of, one file a kind. A block declares its tensors, products, scratch and state, and computes."""
