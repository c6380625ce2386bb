"""Finding out what makes a trained network better: candidates, short runs and a long one, an honest judgement."""
