"""Training: one loop (`loop.fit`) and what it is given, a task for each kind of net."""
