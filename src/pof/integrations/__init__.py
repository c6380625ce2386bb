"""The methods in trainers of other people; each module needs its framework, and ``import pof`` imports none of them."""
