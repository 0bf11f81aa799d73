"""`/dead-letters`: what could not be done, and what a person does about it."""
