"""Several server processes on one address: who keeps them running, and what they tell one another."""
