"""The methods in other trainers; each module needs its framework, and ``import pof`` imports none of them."""
