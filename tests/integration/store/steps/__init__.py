"""What happens to tasks, statement by statement, and what must become of each: the model beside the store.

A step is drawn by hypothesis, with places instead of ids: 0 is the newest record (claim, …) that can have an effect.
Bound to a world it is a move: a statement to run, and the pure function that says what follows from it for one task.
"""
