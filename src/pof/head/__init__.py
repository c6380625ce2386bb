"""Where a network ends: finding its head, and features and logits from one forward."""
