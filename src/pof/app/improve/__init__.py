"""Finding out what makes a trained network better: candidates, successive halving, an honest judgement."""
