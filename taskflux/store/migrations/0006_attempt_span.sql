-- The span (W3C traceparent) of the last recorded attempt: the next attempt links to it. Written with the outcome.
ALTER TABLE tasks ADD COLUMN attempt_span text;
