"""The perturbation of PoF: direction, radius and perturbed logits along the head gradient of a mini-batch."""
