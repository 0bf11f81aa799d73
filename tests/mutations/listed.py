"""What must be noticed: one wrong change for each rule that a guarantee rests on.

When the code moves on, an entry follows it: `python -m tests.mutations --list` names those that no longer apply.
"""

from __future__ import annotations

from typing import Final

from tests.mutations.mutant import Mutation

CLAIMS: Final = ("tests/integration/store/test_claims.py",)
SETTLE: Final = ("tests/integration/store/test_settle.py",)
LEASES: Final = ("tests/integration/store/test_leases.py",)
CLAIM_RACES: Final = ("tests/integration/store/test_claim_races.py",)
CLOCK_STEPS: Final = ("tests/integration/store/test_clock_steps.py",)
PUBLISHING: Final = ("tests/integration/store/test_publishing.py",)
AUDIT: Final = ("tests/integration/store/test_audit.py",)
AUDITOR: Final = ("tests/unit/upkeep/test_auditor.py",)
LOCK_ORDER: Final = ("tests/integration/store/test_lock_order.py",)
TASKS: Final = ("tests/integration/store/test_tasks.py",)
RECEIPTS: Final = ("tests/integration/store/test_receipts.py",)
CIRCUITS: Final = ("tests/integration/store/test_circuits.py",)
REFUSED: Final = ("tests/unit/worker/test_refused_tasks.py",)
BOUNDS: Final = ("tests/unit/tasks/test_bounds.py",)
DECISION: Final = ("tests/unit/tasks/test_decision.py",)
POLICY: Final = ("tests/unit/tasks/test_policy.py",)
GROUP_COMMIT: Final = ("tests/unit/store/test_group_commit.py",)
EXECUTOR: Final = ("tests/unit/worker/test_executor.py",)
OUTCOMES: Final = ("tests/unit/worker/test_outcomes.py",)
SLOTS: Final = ("tests/unit/worker/test_slots.py",)
DEADLINES: Final = ("tests/unit/worker/test_deadlines.py",)
PLAIN_FUNCTIONS: Final = ("tests/unit/worker/test_plain_functions.py",)
SUSPECTS: Final = ("tests/unit/upkeep/test_suspects.py",)
RUN_ALONE: Final = ("tests/unit/worker/test_suspects.py",)
LEASE: Final = ("tests/unit/worker/test_lease.py",)
WORKER: Final = ("tests/unit/worker/test_worker.py",)
INTAKE: Final = ("tests/unit/worker/test_intake.py",)
GATE: Final = ("tests/unit/worker/test_gate.py",)
CONSUMER: Final = ("tests/integration/stream/test_consumer.py",)
POSITIONS: Final = ("tests/unit/stream/test_positions.py",)
PROGRESS: Final = ("tests/unit/stream/test_progress.py",)
CAUSES: Final = ("tests/unit/stream/test_causes.py",)
OUTAGES: Final = ("tests/unit/telemetry/test_outages.py",)
FOREIGN: Final = ("tests/unit/worker/test_foreign.py",)
ENVELOPE: Final = ("tests/unit/stream/test_envelope.py",)
OUTFLOW: Final = ("tests/unit/upkeep/test_outflow.py",)
SWEEP: Final = ("tests/unit/upkeep/test_sweep.py",)
MESSAGE: Final = ("tests/unit/providers/test_message.py",)
ANSWERS: Final = ("tests/unit/providers/test_answers.py",)
MSG91_API: Final = ("tests/integration/providers/test_msg91.py",)
MSG91: Final = ("tests/unit/providers/test_msg91.py",)
SMTP: Final = ("tests/integration/providers/test_smtp.py",)
SMTP_SESSIONS: Final = ("tests/integration/providers/test_smtp_sessions.py",)
BODIES: Final = ("tests/unit/http/test_bodies.py",)
CLIENT: Final = ("tests/unit/http/test_client.py",)
BATCH: Final = ("tests/unit/http/test_batch.py",)
PAYLOADS: Final = ("tests/unit/http/test_payloads.py",)
SUBMISSIONS: Final = ("tests/unit/http/test_submissions.py",)
SECRETS: Final = ("tests/unit/test_secrets.py",)
RENEWED: Final = ("tests/integration/system/test_renewed_secrets.py",)
DIRECT: Final = ("tests/integration/http/test_direct.py",)
WEBHOOK: Final = ("tests/integration/system/test_receipts.py",)

AT_VERSION: Final = "\n      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])]"
AT_ITS_VERSION: Final = (
    "\n      AND t.version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(t.id, :ids::uuid[])])"
)
AT_ANY_VERSION: Final = "\n      AND :versions::integer[] IS NOT NULL"
"""The parameter stays: a statement that takes other ones than it is given fails in every test, whatever its rule."""

WITHDRAWN: Final = (
    ",\n       CASE WHEN bool_or(late) THEN withdraw_rows(array_agg(id) FILTER (WHERE late)) END AS withdrawn"
)
SETTLED_ANSWER: Final = f"""
)
SELECT array_agg(age ORDER BY place) AS ages,
       CASE WHEN count(*) < cardinality(:ids::uuid[]) THEN array_agg(place ORDER BY place) END AS places,
       array_agg(place) FILTER (WHERE late) AS late{WITHDRAWN}
FROM settled;"""
UNCLAIMED: Final = "SELECT unclaimed(ARRAY(SELECT id FROM locked)) AS ids"
CLAIMED_BEFORE: Final = "SELECT ARRAY(SELECT id FROM locked WHERE id NOT IN (SELECT task_id FROM claims)) AS ids"
"""What is claimed as the statement's own snapshot has it: as of its start, before it waited for the lock."""
TAKE_MOVES: Final = f"""{UNCLAIMED}
), moved AS (
    -- Its recheck is what tells a row that was confirmed meanwhile: a confirmation does not take the task's lock.
    UPDATE due d SET publish_at = now() + make_interval(secs => :grace), version = d.version + 1
    WHERE d.task_id = ANY((SELECT ids FROM free)::uuid[]) AND d.dead::integer = 0 AND (d.publish_at <= now()) IS TRUE
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
    RETURNING d.task_id
), bumped AS (
    UPDATE tasks t SET version = t.version + 1, updated_at = now()
    WHERE t.id = ANY(ARRAY(SELECT task_id FROM moved))"""
EXPIRE_MOVES: Final = f"""{UNCLAIMED}
), withdrawn AS (
    -- As in take_due: one that was confirmed meanwhile stays.
    DELETE FROM due d
    WHERE d.task_id = ANY((SELECT ids FROM free)::uuid[]) AND d.dead::integer = 0 AND (d.publish_at < never()) IS TRUE
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
    RETURNING d.task_id
), expired AS (
    UPDATE tasks t
    SET state = 'dead', version = t.version + 1, updated_at = now(), error_class = 'Expired',
        error_reason = 'it was still waiting when its expiresAt passed',
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|died|dead|' || t.attempts || '|1|Expired')
    WHERE t.id = ANY(ARRAY(SELECT task_id FROM withdrawn))"""
"""The outbox row that such a statement changes tells it of a claim too: for the fault to come out, it must not ask."""

_TASKS: Final = (
    Mutation(
        "one attempt too many",
        "taskflux/tasks/decision.py",
        "if attempt.number >= attempt.max_attempts:",
        "if attempt.number > attempt.max_attempts:",
        DECISION,
    ),
    Mutation(
        "a provider's `retry_after` shortens the delay",
        "taskflux/tasks/decision.py",
        "delay = max(delay, min(error.retry_after, LONGEST_DELAY))",
        "delay = min(error.retry_after, LONGEST_DELAY)",
        DECISION,
    ),
    Mutation(
        "a task that its provider cannot stand never spends an attempt",
        "taskflux/tasks/decision.py",
        "if attempt.others_succeeded and releases > FREE_RELEASES:",
        "if False:",
        DECISION,
    ),
    Mutation(
        "a failing provider costs its tasks attempts",
        "taskflux/tasks/decision.py",
        "delay=delay, give_back=True, releases=releases)",
        "delay=delay, give_back=False, releases=releases)",
        DECISION,
    ),
    Mutation(
        "an ambiguous outcome is sent again under `hold`",
        "taskflux/tasks/decision.py",
        'case Ambiguous() if policy.ambiguous == "hold":',
        "case Ambiguous() if False:",
        DECISION,
    ),
    Mutation(
        "retries come without jitter",
        "taskflux/tasks/policy.py",
        "return self.ceiling(attempt) * jitter",
        "return self.ceiling(attempt)",
        POLICY,
    ),
    Mutation(
        "the backoff begins a step too late",
        "taskflux/tasks/policy.py",
        "exponent = min(attempt - 1, 62)",
        "exponent = min(attempt, 62)",
        POLICY,
    ),
    Mutation(
        "after an outage all work comes back at once",
        "taskflux/tasks/policy.py",
        "return RAMP_START * float(2.0 ** (max(closed_for, 0.0) / 2.0))",
        "return None",
        POLICY,
    ),
)

_STORE: Final = (
    Mutation(
        "a record of an older version claims its task",
        "taskflux/store/claims.sql",
        f"{AT_ITS_VERSION}\n      AND t.state IN ('scheduled', 'queued') AND t.type = :type",
        f"{AT_ANY_VERSION}\n      AND t.state IN ('scheduled', 'queued') AND t.type = :type",
        CLAIMS,
    ),
    Mutation(
        "a claim locks in the order in which rows are found",
        "taskflux/store/claims.sql",
        "t.id) IS NULL)\n    ORDER BY t.id FOR NO KEY UPDATE",
        "t.id) IS NULL)\n    FOR NO KEY UPDATE",
        LOCK_ORDER,
    ),
    Mutation(
        "a settlement locks in the order in which rows are found",
        "taskflux/store/claims.sql",
        "IN ('succeeded', 'dead')))\n    ORDER BY t.id FOR NO KEY UPDATE",
        "IN ('succeeded', 'dead')))\n    FOR NO KEY UPDATE",
        LOCK_ORDER,
    ),
    Mutation(
        "a worker claims tasks of another type",
        "taskflux/store/claims.sql",
        "AND t.state IN ('scheduled', 'queued') AND t.type = :type",
        "AND t.state IN ('scheduled', 'queued')",
        CLAIMS,
    ),
    Mutation(
        "a late retry overrides what somebody has made of the task since",
        "taskflux/store/claims.sql",
        "\n                      AND COALESCE(:state, (:states::text[])[width_bucket(t.id, :ids::uuid[])])"
        "\n                          IN ('succeeded', 'dead')",
        "",
        SETTLE,
    ),
    Mutation(
        "a release costs an attempt",
        "taskflux/store/claims.sql",
        "::integer) - o.given_back,\n        handbacks",
        "::integer),\n        handbacks",
        SETTLE + CLAIMS,
    ),
    Mutation(
        "a suspect is claimed beside other work",
        "taskflux/store/claims.sql",
        "AND (:suspects OR array_position((SELECT ids FROM suspected), t.id) IS NULL)",
        "AND (:suspects OR true)",
        SUSPECTS,
    ),
    Mutation(
        "a suspect that ran is as suspect as before",
        "taskflux/store/claims.sql",
        "WHERE event <> 'handed-back' OR error_class IS NOT NULL",
        "WHERE false",
        SUSPECTS,
    ),
    Mutation(
        "a suspect that was released is none any more",
        "taskflux/store/claims.sql",
        "WHERE event <> 'handed-back' OR error_class IS NOT NULL",
        "",
        SUSPECTS,
    ),
    Mutation(
        "the loss of a worker costs an attempt",
        "taskflux/store/upkeep.sql",
        "losses = t.losses + v.losses, attempts = t.attempts - v.given_back",
        "losses = t.losses + v.losses, attempts = t.attempts",
        SUSPECTS,
    ),
    Mutation(
        "a worker that ended in order makes suspects",
        "taskflux/store/upkeep.sql",
        "w.lost IS NOT FALSE AS lost",
        "true AS lost",
        SUSPECTS,
    ),
    Mutation(
        "suspects that waited for their turn are taken for the cause",
        "taskflux/tasks/decision.py",
        "loss=lost and (each.begun or not each.suspect))",
        "loss=lost)",
        SUSPECTS,
    ),
    Mutation(
        "a worker finds claims of others again",
        "taskflux/store/claims.sql",
        "AND c.worker = :worker AND c.attempt IS NOT NULL\n  AND c.version",
        "AND c.attempt IS NOT NULL\n  AND c.version",
        CLAIMS,
    ),
    Mutation(
        "a dead task is not published to the dead-letter topic",
        "taskflux/store/claims.sql",
        "FROM settled WHERE state IN ('scheduled', 'dead') ORDER BY id",
        "FROM settled WHERE state IN ('scheduled') ORDER BY id",
        SETTLE,
    ),
    Mutation(
        "a confirmation waits for whoever holds an outbox row",
        "taskflux/store/publishing.sql",
        "ORDER BY d.task_id FOR NO KEY UPDATE SKIP LOCKED",
        "ORDER BY d.task_id FOR NO KEY UPDATE",
        LOCK_ORDER,
    ),
    Mutation(
        "a late confirmation counts for a newer publish",
        "taskflux/store/publishing.sql",
        "d.version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])])",
        "COALESCE(:version::integer, cardinality(:versions::integer[])) IS NOT NULL",
        CLAIM_RACES,
    ),
    Mutation(
        "a relay publishes without a promise",
        "taskflux/store/publishing.sql",
        "publish_at = now() + make_interval(secs => :grace), version = d.version + 1",
        "publish_at = now() + make_interval(secs => 0 * :grace::float8), version = d.version + 1",
        PUBLISHING,
    ),
    Mutation(
        "what follows a confirmation on its connection does not wait for the disk either",
        "taskflux/store/publishing.sql",
        "set_config('synchronous_commit', 'off', true)",
        "set_config('synchronous_commit', 'off', false)",
        PUBLISHING,
    ),
    Mutation(
        "a late confirmation ends the dead letter of a later death",
        "taskflux/store/publishing.sql",
        "AND d.dead AND d.version = i.version ORDER BY",
        "AND d.dead ORDER BY",
        PUBLISHING,
    ),
    Mutation(
        "a circuit lets every probe through at once",
        "taskflux/store/publishing.sql",
        "AND open\n  AND (probe_at <= now() OR probe_at > now() + make_interval(secs => :last_probe::float8))",
        "AND open",
        CIRCUITS,
    ),
    Mutation(
        "an ended lease still claims",
        "taskflux/store/claims.sql",
        "WHERE id = :worker AND NOT ended FOR KEY SHARE",
        "WHERE id = :worker FOR KEY SHARE",
        LEASES,
    ),
    Mutation(
        "a claim and the end of its lease pass each other",
        "taskflux/store/claims.sql",
        "AND NOT ended FOR KEY SHARE",
        "AND NOT ended",
        LEASES,
    ),
    Mutation(
        "a lease is ended though its worker has beaten since it was looked at",
        "taskflux/store/upkeep.sql",
        "AND beat = (:beats::bigint[])[width_bucket(id, :ids::uuid[])] AND NOT ended\n    ORDER BY id FOR UPDATE",
        "AND NOT ended\n    ORDER BY id FOR UPDATE",
        LEASES,
    ),
    Mutation(
        "a worker of the release before does not beat",
        "taskflux/store/migrations/0007_beats.sql",
        "NEW.beat := OLD.beat + 1;",
        "NEW.beat := OLD.beat;",
        LEASES,
    ),
    Mutation(
        "a leader that was killed leads until the clock has come that far again",
        "taskflux/store/upkeep.sql",
        "leaders.expires_at > clock_timestamp() + make_interval(secs => :seconds)",
        "false",
        CLOCK_STEPS,
    ),
    Mutation(
        "the auditor compares suspects with positions from before they were read",
        "taskflux/upkeep/recovery.py",
        "await self._read(types | known.keys())",
        "await self._read(types - known.keys())",
        AUDITOR,
    ),
    Mutation(
        "the auditor takes what the log has dropped for delivered",
        "taskflux/store/upkeep.sql",
        "AND p.published_offset >= k.next AND",
        "AND",
        AUDITOR,
    ),
    Mutation(
        "the auditor requeues a task that was published again since",
        "taskflux/store/upkeep.sql",
        f"{AT_VERSION} AND t.state IN ('scheduled', 'queued')\n    ORDER BY",
        f"{AT_ANY_VERSION} AND t.state IN ('scheduled', 'queued')\n    ORDER BY",
        AUDIT,
    ),
    Mutation(
        "the auditor locks in the order in which rows are found",
        "taskflux/store/upkeep.sql",
        "AND t.state IN ('scheduled', 'queued')\n    ORDER BY t.id FOR NO KEY UPDATE",
        "AND t.state IN ('scheduled', 'queued')\n    FOR NO KEY UPDATE",
        LOCK_ORDER,
    ),
    Mutation(
        "an idempotency key never expires",
        "taskflux/store/tasks.sql",
        "WHERE idempotency_keys.expires_at <= now()",
        "WHERE false",
        TASKS,
    ),
    Mutation(
        "a tenant reads the tasks of another",
        "taskflux/store/tasks.sql",
        "FROM task_states WHERE id = :id AND tenant = :tenant;",
        "FROM task_states WHERE id = :id AND :tenant::text IS NOT NULL;",
        TASKS,
    ),
    Mutation(
        "a running task is cancelled",
        "taskflux/store/tasks.sql",
        "WHERE t.id = ANY((SELECT ids FROM free)::uuid[]) AND t.id = :id",
        "WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id = :id",
        CLAIM_RACES,
    ),
    Mutation(
        "a cancel reads claims as of its own start, before it had the lock",
        "taskflux/store/tasks.sql",
        UNCLAIMED,
        CLAIMED_BEFORE,
        CLAIM_RACES,
    ),
    Mutation(
        "the auditor reads claims as of its own start, before it had the lock",
        "taskflux/store/upkeep.sql",
        UNCLAIMED,
        CLAIMED_BEFORE,
        CLAIM_RACES,
    ),
    Mutation(
        "claims are read as of the start of whoever asks for them",
        "taskflux/store/migrations/0013_one_write.sql",
        "RETURNS uuid[]\n    LANGUAGE plpgsql VOLATILE",
        "RETURNS uuid[]\n    LANGUAGE plpgsql STABLE",
        CLAIM_RACES,
    ),
    Mutation(
        "a cancel deletes outbox rows as of its own start, before it had the lock",
        "taskflux/store/tasks.sql",
        "\n)\nSELECT id, withdraw_rows(ARRAY[id]) AS withdrawn FROM cancelled;",
        "\n), gone AS (\n    DELETE FROM due d USING cancelled c WHERE d.task_id = c.id AND NOT d.dead\n)\n"
        "SELECT id FROM cancelled;",
        CLAIM_RACES,
    ),
    Mutation(
        "a late outcome deletes outbox rows as of its own start, before it had the lock",
        "taskflux/store/claims.sql",
        SETTLED_ANSWER,
        "\n), gone AS (\n"
        "    DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT id FROM settled WHERE late)) AND NOT d.dead"
        f"{SETTLED_ANSWER.replace(WITHDRAWN, '')}",
        CLAIM_RACES,
    ),
    Mutation(
        "a relay reads claims and outbox rows as of its own start, before it had the lock",
        "taskflux/store/publishing.sql",
        TAKE_MOVES,
        TAKE_MOVES.replace(UNCLAIMED, CLAIMED_BEFORE).replace(
            "ARRAY(SELECT task_id FROM moved)", "(SELECT ids FROM free)::uuid[]"
        ),
        CLAIM_RACES,
    ),
    Mutation(
        "an expiry reads claims and outbox rows as of its own start, before it had the lock",
        "taskflux/store/publishing.sql",
        EXPIRE_MOVES,
        EXPIRE_MOVES.replace(UNCLAIMED, CLAIMED_BEFORE).replace(
            "ARRAY(SELECT task_id FROM withdrawn)", "(SELECT ids FROM free)::uuid[]"
        ),
        CLAIM_RACES,
    ),
    Mutation(
        "a relay publishes again what was confirmed meanwhile",
        "taskflux/store/publishing.sql",
        "WHERE t.id = ANY(ARRAY(SELECT task_id FROM moved))",
        "WHERE t.id = ANY((SELECT ids FROM free)::uuid[])",
        CLAIM_RACES,
    ),
    Mutation(
        "a task that was confirmed meanwhile expires",
        "taskflux/store/publishing.sql",
        "WHERE t.id = ANY(ARRAY(SELECT task_id FROM withdrawn))",
        "WHERE t.id = ANY((SELECT ids FROM free)::uuid[])",
        CLAIM_RACES,
    ),
    Mutation(
        "a claim overwrites the one that it has waited for",
        "taskflux/store/claims.sql",
        "    ON CONFLICT (task_id) DO NOTHING\n    RETURNING task_id",
        "    ON CONFLICT (task_id) DO UPDATE SET worker = EXCLUDED.worker, version = EXCLUDED.version\n"
        "    RETURNING task_id",
        CLAIM_RACES,
    ),
    Mutation(
        "a claim leaves the outbox row of its task",
        "taskflux/store/claims.sql",
        "WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM claimed)) AND d.dead::integer = 0",
        "WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM claimed)) AND d.dead",
        CLAIM_RACES,
    ),
    Mutation(
        "a settlement counts without its claim",
        "taskflux/store/claims.sql",
        "OR id IN (SELECT task_id FROM released WHERE attempt IS NOT NULL)",
        "OR (SELECT count(attempt) FROM released) >= 0",
        CLAIM_RACES,
    ),
    Mutation(
        "a worker settles the claim of another",
        "taskflux/store/claims.sql",
        "AND (c.worker = ANY(:workers) OR c.attempt IS NULL)",
        "AND (:workers::uuid[] IS NOT NULL OR c.attempt IS NULL)",
        CLAIM_RACES,
    ),
    Mutation(
        "a delivery report of an earlier replay counts",
        "taskflux/store/notifications.sql",
        "AND t.replays = i.replay\n",
        "\n",
        RECEIPTS,
    ),
    Mutation(
        "two items of one task share a statement",
        "taskflux/store/group_commit.py",
        "if not taken.isdisjoint(group.uniques):",
        "if False:",
        GROUP_COMMIT,
    ),
    Mutation(
        "a bad row takes its whole batch with it",
        "taskflux/store/group_commit.py",
        "if sum(len(group.items) for group in batch) > 1 and (not known or isinstance(error, RefusedData)):",
        "if False:",
        GROUP_COMMIT,
    ),
    Mutation(
        "a statement waits for no crowd",
        "taskflux/store/group_commit.py",
        "if self._window and len(batch) >= CROWD:",
        "if False:",
        GROUP_COMMIT,
    ),
    Mutation(
        "a few callers wait for a window",
        "taskflux/store/group_commit.py",
        "if self._window and len(batch) >= CROWD:",
        "if self._window:",
        GROUP_COMMIT,
    ),
    Mutation(
        "a window ends only when all have come back",
        "taskflux/store/group_commit.py",
        "async with asyncio.timeout_at(self._until):",
        "async with asyncio.timeout(None):",
        GROUP_COMMIT,
    ),
    Mutation(
        "a window that its last caller fills goes on",
        "taskflux/store/group_commit.py",
        "            self._full.set()\n",
        "            pass\n",
        GROUP_COMMIT,
    ),
    Mutation(
        "a window goes on though all were there before it",
        "taskflux/store/group_commit.py",
        "if len(self._waiting) < self._crowd and loop.time() < self._until:",
        "if loop.time() < self._until:",
        GROUP_COMMIT,
    ),
    Mutation(
        "a window lasts for more callers than a statement takes",
        "taskflux/store/group_commit.py",
        "self._crowd = min(len(batch) + len(self._waiting), self._max_items)",
        "self._crowd = len(batch) + len(self._waiting)",
        GROUP_COMMIT,
    ),
    Mutation(
        "callers of a batch that is stopped wait for ever",
        "taskflux/store/group_commit.py",
        "            for group in (*batch, *self._waiting):\n                group.fail(_broken(error))\n",
        "",
        GROUP_COMMIT,
    ),
)

_WORKER: Final = (
    Mutation(
        "offsets are noted before the claim is durable",
        "taskflux/worker/worker.py",
        "        traces = [each.traceparent for each in ours.values()] if tracing.on else []",
        "        self._consumer.note_done(records)\n"
        "        traces = [each.traceparent for each in ours.values()] if tracing.on else []",
        WORKER,
    ),
    Mutation(
        "a claim whose answer was lost is not looked for",
        "taskflux/worker/worker.py",
        "            asked = True\n",
        "",
        WORKER,
    ),
    Mutation(
        "suspects begin while other work is in flight",
        "taskflux/worker/executor.py",
        "await running.turn.wait()",
        "pass",
        RUN_ALONE,
    ),
    Mutation(
        "poison is forgotten before it is durable",
        "taskflux/worker/worker.py",
        "if poison and not await self._poison.put_aside(poison):",
        "if poison and await self._poison.put_aside(poison) is None:",
        WORKER,
    ),
    Mutation(
        "what leaves a handler ends its attempt without an outcome",
        "taskflux/worker/executor.py",
        "except BaseException as raised:",
        "except Exception as raised:",
        EXECUTOR,
    ),
    Mutation(
        "an unforeseen exception is retried under `hold`",
        "taskflux/tasks/decision.py",
        'return Ambiguous(reason) if called and policy.ambiguous == "hold" else Crash(reason)',
        "return Crash(reason)",
        EXECUTOR,
    ),
    Mutation(
        "a handler's own cancellation counts as cut off",
        "taskflux/worker/attempt.py",
        "if error is None and running.cut:",
        "if error is None:",
        EXECUTOR,
    ),
    Mutation(
        "a claim that has lost its attempt stays as it is",
        "taskflux/worker/worker.py",
        "                self._executor.release(claim)\n",
        "                pass\n",
        WORKER,
    ),
    Mutation(
        "a claim whose answer is under way is released",
        "taskflux/worker/worker.py",
        "if claim.id not in self._asked and not",
        "if not",
        WORKER,
    ),
    Mutation(
        "a side effect begins without a lease",
        "taskflux/worker/executor.py",
        "        if not self.lease.covers(running.term):\n            return LEASE_LOST\n",
        "",
        EXECUTOR,
    ),
    Mutation(
        "a side effect begins though the lease expired during the wait for a turn",
        "taskflux/worker/executor.py",
        "await self._gate.refusal(probe=running.probe) or self._unfit(running)",
        "await self._gate.refusal(probe=running.probe)",
        EXECUTOR,
    ),
    Mutation(
        "a lease that came back covers claims of the one before",
        "taskflux/worker/lease.py",
        "return term == self.term and self.valid",
        "return self.valid",
        LEASE,
    ),
    Mutation(
        "a lease does not count while the machine is suspended",
        "taskflux/worker/lease.py",
        "clock: Callable[[], float] = boottime,",
        "clock: Callable[[], float] = time.monotonic,",
        LEASE,
    ),
    Mutation(
        "time in which nobody looked counts as a worker's silence",
        "taskflux/upkeep/recovery.py",
        "if now - self._looked > GAP:",
        "if False:",
        SWEEP,
    ),
    Mutation(
        "time in which PostgreSQL could not be asked counts as a worker's silence",
        "taskflux/upkeep/recovery.py",
        "        except StoreError:\n            self.start_again()\n            raise",
        "        except StoreError:\n            raise",
        SWEEP,
    ),
    Mutation(
        "a beat does not begin a worker's lease again",
        "taskflux/upkeep/recovery.py",
        "since if beat == before else now",
        "since",
        SWEEP,
    ),
    Mutation(
        "a lease counts from the answer to its beat",
        "taskflux/worker/lease.py",
        "self._until = began + self._seconds",
        "self._until = self._clock() + self._seconds",
        LEASE,
    ),
    Mutation(
        "a foreign id is taken again with another payload",
        "taskflux/worker/foreign.py",
        "elif known.digest != wanted.digest:",
        "elif False:",
        WORKER,
    ),
    Mutation(
        "ingest publishes without a promise",
        "taskflux/worker/intake.py",
        "self._grace if self._ours(submission.provider) else 0.0",
        "0.0",
        INTAKE,
    ),
    Mutation(
        "failures of long ago open a circuit",
        "taskflux/worker/circuits.py",
        "        self._failed.clear()\n",
        "",
        GATE,
    ),
    Mutation(
        "one task that fails time and again opens the circuit",
        "taskflux/worker/circuits.py",
        "elif len(self._failed) >= OPEN_AFTER:",
        "else:",
        GATE,
    ),
    Mutation(
        "tasks that fail while others are served open the circuit",
        "taskflux/worker/circuits.py",
        "        if not serves_others:\n            self._failed.add(task)\n",
        "        self._failed.add(task)\n",
        GATE,
    ),
    Mutation(
        "a probe is drawn from whatever waits longest",
        "taskflux/store/publishing.py",
        'SQL["probes_now" if probe else "due_now"]',
        'SQL["due_now"]',
        REFUSED,
    ),
    Mutation(
        "forty refused tasks hold a good one",
        "taskflux/store/publishing.sql",
        "CASE WHEN :refused THEN LEAST(:most_probes, 2 ^ LEAST(probes, 30))::integer ELSE 1 END",
        "CASE WHEN :refused THEN LEAST(:most_probes, 1)::integer ELSE 1 END",
        GATE,
    ),
    Mutation(
        "more is published than Kafka may hold unclaimed",
        "taskflux/upkeep/outflow.py",
        "self._settings.max_unclaimed - flow.lag - flow.released",
        "self._settings.max_unclaimed - flow.lag",
        OUTFLOW,
    ),
    Mutation(
        "a stuck thread gives its slot away",
        "taskflux/worker/executor.py",
        "        if running.in_thread:\n            return  # the thread keeps what its attempt had\n",
        "",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "an attempt whose thread has returned is cut off",
        "taskflux/worker/executor.py",
        "running.stage = Stage.SETTLING  # it must not be cut off any more",
        "pass",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "a thread that goes on after its attempt is not counted",
        "taskflux/worker/executor.py",
        "                if running.in_thread:\n                    self._strand(running)\n",
        "",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "a worker takes tasks for slots that stuck threads have",
        "taskflux/worker/executor.py",
        "slots = self._concurrency - len(self._stuck)",
        "slots = self._concurrency",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "tasks wait in a worker whose threads are all stuck",
        "taskflux/worker/executor.py",
        "                self._let_go(each, ALL_STUCK)\n",
        "                pass\n",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "a task that is claimed as the last thread gets stuck waits",
        "taskflux/worker/executor.py",
        "ALL_STUCK if self._all_stuck_since is not None else None",
        "None",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "suspects run beside a stuck thread",
        "taskflux/worker/executor.py",
        "while self._active or self._stuck:",
        "while self._active:",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "suspects that were released are said to have begun",
        "taskflux/worker/suspects.py",
        "if not any(self._executor.holds(claim.id, claim.version) for claim in group.claims):",
        "if False:",
        PLAIN_FUNCTIONS,
    ),
    Mutation(
        "two outcomes of a task are written by one statement",
        "taskflux/worker/outcomes.py",
        "            if batch.setdefault(outcome.settlement.id, outcome) is not outcome:\n",
        "            if batch.setdefault(UUID(int=id(outcome)), outcome) is not outcome:\n",
        OUTCOMES,
    ),
    Mutation(
        "outcomes are lost with the asyncio task that writes them",
        "taskflux/worker/outcomes.py",
        "                    self._failed([*batch, *self._waiting], error)\n",
        "",
        OUTCOMES,
    ),
    Mutation(
        "attempts share the context of their asyncio task",
        "taskflux/worker/attempt.py",
        "running.context.run(attempt.send, None)",
        "attempt.send(None)",
        SLOTS,
    ),
    Mutation(
        "an attempt begins in a task that another one still uses",
        "taskflux/worker/attempt.py",
        " or getrefcount(task) != untouched",
        "",
        SLOTS,
    ),
    Mutation(
        "an attempt begins in a task that another one has cancelled",
        "taskflux/worker/attempt.py",
        "task.cancelling() or ",
        "",
        SLOTS,
    ),
    Mutation(
        "attempts that do not wait hold the event loop",
        "taskflux/worker/attempt.py",
        " or monotonic() >= until",
        "",
        SLOTS,
    ),
    Mutation(
        "the line waits for a task that was cancelled",
        "taskflux/worker/attempt.py",
        "            task.add_done_callback(self._ended)\n",
        "",
        SLOTS,
    ),
    Mutation(
        "a worker holds any number of payloads",
        "taskflux/worker/attempt.py",
        "while self._held and self._held + size > self._most:",
        "while False:",
        EXECUTOR,
    ),
    Mutation(
        "each attempt has a task made for it, though it does not wait",
        "taskflux/worker/attempt.py",
        "len(self._line) if self._waited else 1",
        "len(self._line)",
        SLOTS,
    ),
    Mutation(
        "the line stops behind an attempt that waits",
        "taskflux/worker/attempt.py",
        "            self._beginning = False\n            self._serve()\n",
        "            self._beginning = False\n",
        SLOTS,
    ),
    Mutation(
        "an attempt in a task of its own takes no slot",
        "taskflux/worker/attempt.py",
        "                self._hold(running)\n                called_up.set_result(None)",
        "                called_up.set_result(None)",
        SLOTS,
    ),
    Mutation(
        "a slot is lost with an attempt that was cancelled before it had it",
        "taskflux/worker/attempt.py",
        "            if not called_up.done():",
        "            if running.called_up is not None:",
        SLOTS,
    ),
    Mutation(
        "an attempt that has left the line begins",
        "taskflux/worker/attempt.py",
        "        self._line.remove(running)\n\n    async def take",
        "        pass\n\n    async def take",
        SLOTS,
    ),
    Mutation(
        "a slot that an attempt had is not given on",
        "taskflux/worker/attempt.py",
        "        self._ended_now += 1\n        self._serve()\n",
        "        self._ended_now += 1\n",
        SLOTS,
    ),
    Mutation(
        "as many are in line as end soon, however few may run",
        "taskflux/worker/attempt.py",
        "min(int(self._pace * AHEAD), MOST_AHEAD * slots)",
        "int(self._pace * AHEAD)",
        SLOTS,
    ),
    Mutation(
        "the pace of attempts is never measured",
        "taskflux/worker/attempt.py",
        "if (passed := now - self._ended_since) >= PACE:",
        "if (passed := now - self._ended_since) < 0:",
        SLOTS,
    ),
    Mutation(
        "the pace of attempts is that of the moment",
        "taskflux/worker/attempt.py",
        "if (passed := now - self._ended_since) >= PACE:",
        "if (passed := max(now - self._ended_since, 1e-3)):",
        SLOTS,
    ),
    Mutation(
        "handlers behind the first one are late at no time",
        "taskflux/worker/attempt.py",
        "        if self._until:\n            self._set_timer()\n",
        "",
        DEADLINES,
    ),
    Mutation(
        "handlers have no deadline once its timer had nothing left",
        "taskflux/worker/attempt.py",
        "        self._timer = None\n        if self._until:",
        "        if self._until:",
        DEADLINES,
    ),
    Mutation(
        "a handler that has ended is late",
        "taskflux/worker/attempt.py",
        "        self._until.pop(running, None)\n",
        "        pass\n",
        DEADLINES,
    ),
    Mutation(
        "a handler is told to be late for ever",
        "taskflux/worker/attempt.py",
        "            del self._until[running]\n            self._late(running)",
        "            self._late(running)",
        DEADLINES,
    ),
    Mutation(
        "all handlers are late with the first",
        "taskflux/worker/attempt.py",
        "takewhile(lambda each: self._until[each] <= now, self._until)",
        "takewhile(lambda each: now, self._until)",
        DEADLINES,
    ),
    Mutation(
        "a handler may take any time",
        "taskflux/worker/executor.py",
        "        self._deadlines.begin(running)\n",
        "",
        EXECUTOR,
    ),
    Mutation(
        "attempts that have ended are kept until they would be late",
        "taskflux/worker/executor.py",
        "            self._deadlines.end(running)\n            if running.again",
        "            if running.again",
        EXECUTOR,
    ),
    Mutation(
        "a small payload passes a large one that waits for room",
        "taskflux/worker/attempt.py",
        "        async with self._turn:  # in",
        "        async with asyncio.Lock():  # in",
        EXECUTOR,
    ),
    Mutation(
        "a worker takes tasks for any number of outcomes that wait",
        "taskflux/worker/executor.py",
        "min(self._outcomes.under_way, 2 * SETTLE_BATCH)",
        "self._outcomes.under_way",
        EXECUTOR,
    ),
    Mutation(
        "a worker takes no tasks while outcomes are written",
        "taskflux/worker/executor.py",
        " + min(self._outcomes.under_way, 2 * SETTLE_BATCH)",
        "",
        EXECUTOR,
    ),
)

_STREAM: Final = (
    Mutation(
        "a member whose records nobody asks for leaves its group",
        "taskflux/stream/consumer.py",
        " or now - self._asked > _ASKED_WITHIN",
        "",
        CONSUMER,
    ),
    Mutation(
        "the fields of another producer's record are ignored",
        "taskflux/stream/envelope.py",
        "fields = {name: body[name] for name in OPTIONAL if body.get(name) is not None}",
        "fields: dict[str, object] = {}",
        FOREIGN,
    ),
    Mutation(
        "a task that waits runs as soon as its record comes again",
        "taskflux/worker/foreign.py",
        "if known.due_now if known.fresh else not wanted.waits:",
        "if True:",
        FOREIGN,
    ),
    Mutation(
        "a recreated topic is said to hold the records of the one before",
        "taskflux/stream/positions.py",
        "return log_id == self.log_id and at is not None",
        "return at is not None",
        POSITIONS,
    ),
    Mutation(
        "a record that was taken is said to be still to come",
        "taskflux/stream/positions.py",
        "at.next <= offset < at.end",
        "offset < at.end",
        POSITIONS,
    ),
    Mutation(
        "a commit passes a record that is still being claimed",
        "taskflux/stream/positions.py",
        "        while held.outstanding and held.outstanding[0] in held.done:",
        "        while held.outstanding:",
        PROGRESS,
    ),
    Mutation(
        "a version that no row can have is read from a record of ours",
        "taskflux/stream/envelope.py",
        "(0|[1-9][0-9]{0,8})",
        "(0|[1-9][0-9]{0,9})",
        ENVELOPE,
    ),
    Mutation(
        "a record of any size is decoded",
        "taskflux/stream/envelope.py",
        "if record.size > max_bytes:",
        "if False:",
        ENVELOPE,
    ),
    Mutation(
        "a password that a broker repeats is told",
        "taskflux/stream/client.py",
        "if secret and secret in words:",
        "if False:",
        CAUSES,
    ),
    Mutation(
        "what was heard before an attempt explains its failure",
        "taskflux/stream/client.py",
        "if each.at >= since and each.kind in _BY_PRECISION",
        "if each.kind in _BY_PRECISION",
        CAUSES,
    ),
    Mutation(
        "why Kafka cannot be reached is logged at every try",
        "taskflux/telemetry/outages.py",
        'if now - _logged.get(line, float("-inf")) < RARELY:',
        "if False:",
        OUTAGES,
    ),
)

_PROVIDERS: Final = (
    Mutation(
        "quotes in a display name end it",
        "taskflux/providers/message.py",
        "{quote(shown)}",
        "{shown}",
        MESSAGE,
    ),
    Mutation(
        "a line that begins with a dot ends the mail",
        "taskflux/providers/message.py",
        r"""stuffed = data.replace(b"\r\n.", b"\r\n..")""",
        "stuffed = data",
        MESSAGE,
    ),
    Mutation(
        "a blind copy is a header",
        "taskflux/providers/message.py",
        '("Reply-To", email.reply_to)):',
        '("Reply-To", email.reply_to), ("Bcc", email.bcc)):',
        MESSAGE,
    ),
    Mutation(
        "an error that MSG91 answers with HTTP 200 is a success",
        "taskflux/providers/msg91.py",
        'if status < 300 and str(answer.get("type", "")).lower() == "success":',
        "if status < 300:",
        MSG91,
    ),
    Mutation(
        "a gateway's timeout is taken for a refusal",
        "taskflux/providers/msg91.py",
        "if status == 504:",
        "if False:",
        MSG91,
    ),
    Mutation(
        "recipients who have the mail get it again",
        "taskflux/providers/smtp.py",
        "            deliveries.resume(progress)\n",
        "            pass\n",
        SMTP,
    ),
    Mutation(
        "a mail whose answer was lost is taken for one that was never sent",
        "taskflux/providers/smtp.py",
        "    sending.begin()\n    client.protocol.write(message.wire)\n",
        "    client.protocol.write(message.wire)\n",
        SMTP,
    ),
    Mutation(
        "an error that nobody foresaw after the request is no reason to hold",
        "taskflux/providers/answers.py",
        "                if sending is not None:\n                    sending.begin()\n",
        "",
        MSG91_API,
    ),
    Mutation(
        "an answer is unpacked whatever its size",
        "taskflux/providers/answers.py",
        "self._gzip.decompress(chunk, room) if",
        "self._gzip.decompress(chunk) if",
        ANSWERS,
    ),
    Mutation(
        "a submitter's wrong template stops all messages",
        "taskflux/providers/msg91.py",
        "if code in PERMANENT_CODES or code in own:",
        "if code in PERMANENT_CODES:",
        MSG91,
    ),
    Mutation(
        "relaying that is denied to everybody is a dead letter for each mail",
        "taskflux/providers/smtp.py",
        "if not everybody or deliveries.delivered or self._settings.username is not None:",
        "if True:",
        SMTP_SESSIONS,
    ),
    Mutation(
        "ten mails with a wrong password are ten failed logins",
        "taskflux/providers/smtp_session.py",
        "                    if self._failed is not None and self.failures > before:\n",
        "                    if self._failed is not None and False:\n",
        SMTP_SESSIONS,
    ),
    Mutation(
        "a yes to DATA counts as a delivery",
        "taskflux/providers/smtp_replies.py",
        "range(354, 355) if stage is Stage.DATA else range(200, 300)",
        "range(200, 400)",
        SMTP,
    ),
)

_HTTP: Final = (
    Mutation(
        "formats of a payload's schema are not asserted",
        "taskflux/http/task_types.py",
        "validate_formats=True,",
        "validate_formats=False,",
        PAYLOADS,
    ),
    Mutation(
        "a built-in type is held against its schema alone",
        "taskflux/http/task_types.py",
        "if self._model is not None:",
        "if False:",
        PAYLOADS,
    ),
    Mutation(
        "a key that came with another request is answered with that one's task",
        "taskflux/http/submissions.py",
        "if isinstance(outcome, KeyReused):\n        raise",
        "if False:\n        raise",
        SUBMISSIONS,
    ),
    Mutation(
        "anybody may report deliveries",
        "taskflux/http/receipts.py",
        "if not hmac.compare_digest(given, self._secret().encode()):",
        "if False:",
        WEBHOOK,
    ),
    Mutation(
        "the task of a type whose handler is off is accepted",
        "taskflux/http/task_types.py",
        "return None if registered is None or registered.type.off_handler is not None else registered",
        "return registered",
        SUBMISSIONS,
    ),
    Mutation(
        "a wrong renewal of a secret stays in the environment",
        "taskflux/worker/settings.py",
        "        secrets.undo(changed)\n",
        "",
        SECRETS,
    ),
    Mutation(
        "a renewed password of PostgreSQL is not used",
        "taskflux/store/database.py",
        "            connect=self._connect,\n",
        "            settings.dsn.get_secret_value(),\n",
        RENEWED,
    ),
    Mutation(
        "a text may hold any number of values",
        "taskflux/tasks/bounds.py",
        "    if values > MAX_VALUES:",
        "    if False:",
        BOUNDS,
    ),
    Mutation(
        "a text may be nested as deep as it likes",
        "taskflux/tasks/bounds.py",
        "if opened > depth and max(",
        "if False and max(",
        BOUNDS,
    ),
    Mutation(
        "all requests together may hold any number of bytes",
        "taskflux/http/bodies.py",
        "if flight.bytes + size > limit:",
        "if False:",
        BODIES,
    ),
    Mutation(
        "a request that ends keeps what it held",
        "taskflux/http/bodies.py",
        "            held.give_all()",
        "            pass",
        BODIES,
    ),
    Mutation(
        "a batch gives back what its request has given back already",
        "taskflux/http/bodies.py",
        "        size = min(size, self._bytes)",
        "        size = max(size, 0)",
        CLIENT,
    ),
    Mutation(
        "a type takes payloads of any size",
        "taskflux/http/submissions.py",
        "if len(text) > task_type.max_bytes:",
        "if False:",
        BODIES,
    ),
    Mutation(
        "each bad item of a batch is described in full",
        "taskflux/http/batch.py",
        "if self._described > DESCRIBED and not last:",
        "if False:",
        BATCH,
    ),
    Mutation(
        "a batch is read on, however many of its items fail",
        "taskflux/http/batch.py",
        "if self._failed > MOST_FAILED:",
        "if False:",
        BATCH,
    ),
    Mutation(
        "every error of a crowded payload is made",
        "taskflux/http/task_types.py",
        "if values > DESCRIBED:",
        "if False:",
        PAYLOADS,
    ),
    Mutation(
        "a submit that is answered directly has its header's last value",
        "taskflux/http/submissions.py",
        "            or len(by_name) < len(headers)\n",
        "",
        DIRECT,
    ),
    Mutation(
        "a compressed submit is read as it is",
        "taskflux/http/submissions.py",
        '            or b"content-encoding" in by_name\n',
        "",
        DIRECT,
    ),
    Mutation(
        "a submit of any media type is answered directly",
        "taskflux/http/submissions.py",
        '            or by_name.get(b"content-type") != JSON\n',
        "",
        DIRECT,
    ),
    Mutation(
        "a submit of any size is answered directly",
        "taskflux/http/submissions.py",
        "min(SMALL, self._submissions.limits.max_body_bytes)",
        "10**9",
        DIRECT,
    ),
    Mutation(
        "a submit that is answered directly has no span",
        "taskflux/http/submissions.py",
        "            tracing.on\n            or len(by_name)",
        "            len(by_name)",
        DIRECT,
    ),
    Mutation(
        "the values of a submit that is answered directly take no room",
        "taskflux/http/submissions.py",
        "            held.take(weigh(body))\n",
        "",
        DIRECT,
    ),
    Mutation(
        "a submit that is answered directly keeps what it held",
        "taskflux/http/submissions.py",
        "        held.give_all()\n        requests.in_progress -= 1",
        "        requests.in_progress -= 1",
        DIRECT,
    ),
    Mutation(
        "what goes the general way holds its bytes twice",
        "taskflux/http/submissions.py",
        "            held.give_all()\n            return None",
        "            return None",
        DIRECT,
    ),
    Mutation(
        "a submit whose client has disconnected is not given up",
        "taskflux/http/connections.py",
        "            self._own.future.cancel()\n",
        "            pass\n",
        DIRECT,
    ),
    Mutation(
        "a submit that is answered directly may name any host",
        "taskflux/http/server.py",
        "    if not known.allowed:\n        return take",
        "    if known is not None:\n        return take",
        DIRECT,
    ),
)

MUTATIONS: Final = (*_TASKS, *_STORE, *_WORKER, *_STREAM, *_PROVIDERS, *_HTTP)
