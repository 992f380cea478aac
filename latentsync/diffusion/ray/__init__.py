"""Many GPUs and machines, by Ray: one clip parted over replicas, or replicas that serve tasks.

spread.py     a run's groups over replicas, in order, and again where one was lost: no Ray
replicas.py   the replicas as Ray actors, and the engine that `LipSync.run` is given
scaling.py    how many replicas a queue needs: no Ray
fleet.py      replicas that work off the task table, between a least and a greatest number
session.py    Ray itself: found, begun here or joined, left again
"""
