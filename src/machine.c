/*
 * machine.c
 *		What happens next: the machine's decisions (see machine.h).
 *
 * Owns the rules of order, retry, pivot, undo, deadline and verbs.  Called by
 * coordinator.c, one event at a time, and by the simulator.  It must not write
 * a lasting field of the state: those change only by saga_emit(), which
 * applies the record; what is written here directly is ephemeral (a call is
 * out; CALLING / UNDO_CALLING of a local call).  The undo's order is
 * machine_undo.c's, the records' effects machine_fold.c's.
 *
 * Each entry handles its event and then advance() does all that has become
 * possible, so that resume() after a crash is nothing but advance() again.
 *
 * Payloads: the record that an event directly causes carries the event's
 * payload, records that follow from it have NULL.  A skip that must first
 * claim the call gives its payload (the operator's result) to the INTENT of
 * the claim; the SKIPPED that follows the participant's REFUSED has NULL, and
 * the caller substitutes the result it kept or finds at that INTENT.
 *
 * Recovery: create, apply every record, then ANSWER DONE for each committed
 * local outcome that is not in the log (actions first, then undos, then the
 * ending hook), then resume().  Answers before resume() are recorded only;
 * what follows from them is decided when all of them are known.
 */
#include "machine_private.h"

/* Of a claim or hook: nothing in the definition says how to retry those. */
static const SagaRetry own_retry = {0, SAGA_SECOND, 60 * SAGA_SECOND, 2.0, 0.0};

/* ------------------------------------------------------- output */

static void *
grow(SagaArena *arena, void *old, int n, int *max, size_t size)
{
	void	   *new;

	*max = Max(8, 2 * n);
	new = arena->alloc(arena, size * (size_t) *max);
	if (n > 0)
		memcpy(new, old, size * (size_t) n);
	return new;
}

SagaRecord
saga_record(SagaRecordKind kind, int32 node, SagaOp op)
{
	SagaRecord	record;

	memset(&record, 0, sizeof(record));
	record.kind = kind;
	record.node = node;
	record.op = op;
	return record;
}

/* Give the record its number and let it act; false if it cannot follow. */
static bool
try_emit(Machine *m, SagaRecord *record)
{
	SagaDecision *out = m->out;

	record->seq = m->state->seq + 1;
	if (!saga_machine_apply(m->state, record))
		return false;
	if (out->nrecords == out->maxrecords)
		out->records = grow(out->arena, out->records, out->nrecords,
							&out->maxrecords, sizeof(SagaRecord));
	out->records[out->nrecords++] = *record;
	return true;
}

bool
saga_emit(Machine *m, SagaRecord *record)
{
	bool		possible = try_emit(m, record);

	Assert(possible);
	if (!possible)
		m->out->ignored = "the state machine decided on an impossible record";
	return possible;
}

static bool
emit_simple(Machine *m, SagaRecordKind kind, int32 node, SagaOp op)
{
	SagaRecord	record = saga_record(kind, node, op);

	return saga_emit(m, &record);
}

static SagaCommand *
command(Machine *m, SagaCommandKind kind, int32 node, SagaOp op)
{
	SagaDecision *out = m->out;
	SagaCommand *cmd;

	if (out->ncommands == out->maxcommands)
		out->commands = grow(out->arena, out->commands, out->ncommands,
							 &out->maxcommands, sizeof(SagaCommand));
	cmd = &out->commands[out->ncommands++];
	memset(cmd, 0, sizeof(*cmd));
	cmd->kind = kind;
	cmd->node = node;
	cmd->op = op;
	return cmd;
}

/* ------------------------------------------------------- calls */

static SagaStep *
step_of(SagaState *state, int32 node)
{
	return node == SAGA_NODE_END ? &state->hook : &state->steps[node];
}

/* Send the call; what it is for must be in the state (or log) already. */
void
saga_call(Machine *m, int32 node, SagaOp op)
{
	SagaCommand *cmd = command(m, SAGA_CMD_CALL, node, op);
	SagaStep   *step;

	m->state->in_flight++;
	if (node == SAGA_NODE_ON_STUCK)
	{
		m->state->stuck_hook_out = true;
		cmd->attempt = 1;
		return;
	}
	step = step_of(m->state, node);
	if (op == SAGA_OP_CLAIM)
	{
		step->claim_out = true;
		cmd->attempt = step->claim_tries + 1;
		cmd->target = in_undo_phase(step) ? SAGA_OP_UNDO : SAGA_OP_ACTION;
		return;
	}
	step->in_flight = true;
	cmd->attempt = (op == SAGA_OP_UNDO ? undo_attempts(step) :
					step->attempts) + 1;
	cmd->conditional = op == SAGA_OP_UNDO && !step->happened;
}

static void
call_is_over(SagaState *state, SagaStep *step)
{
	step->in_flight = false;
	state->in_flight--;
}

static void
claim_is_over(SagaState *state, SagaStep *step)
{
	step->claim_out = false;
	state->in_flight--;
}

/* Whatever is still out for the step no longer matters. */
static void
forget_calls(Machine *m, int32 node)
{
	SagaStep   *step = step_of(m->state, node);

	if (step->in_flight)
	{
		call_is_over(m->state, step);
		command(m, SAGA_CMD_CANCEL_CALL, node,
				node == SAGA_NODE_END ? SAGA_OP_HOOK :
				in_undo_phase(step) || step->status == SAGA_STEP_UNDONE ?
				SAGA_OP_UNDO : SAGA_OP_ACTION);
	}
	if (step->claim_out)
	{
		claim_is_over(m->state, step);
		command(m, SAGA_CMD_CANCEL_CALL, node, SAGA_OP_CLAIM);
	}
	step->lost = false;
}

/* May new calls start? */
static inline bool
may_call(const SagaState *state)
{
	return !state->paused && !state->terminating && !state->deadline_stuck;
}

/*
 * When to try again after the nth answer: initial * backoff^(n-1), capped,
 * give or take the jitter.  By squaring, and so that no overflow survives.
 */
static SagaTime
retry_at(const Machine *m, const SagaRetry *retry, int32 n,
		 SagaTime retry_after)
{
	double		delay = (double) Max(retry->initial_interval, 0);
	double		cap = retry->max_interval > 0 ?
		(double) retry->max_interval : 86400.0 * SAGA_SECOND;
	double		factor = retry->backoff > 0 ? retry->backoff : 1.0;
	SagaTime	wait;

	for (uint32 power = n > 1 ? (uint32) n - 1 : 0; power > 0; power >>= 1)
	{
		if (power & 1)
			delay *= factor;
		factor *= factor;
	}
	if (!(delay <= cap))		/* also NaN, from 0 * infinity */
		delay = cap;
	if (retry->jitter > 0 && retry->jitter <= 1 &&
		m->random >= 0 && m->random < 1)
		delay *= 1.0 + retry->jitter * (2.0 * m->random - 1.0);
	wait = delay < 1e17 ? (SagaTime) delay : INT64_C(100000000000000000);
	wait = Max(wait, retry_after);
	if (m->now > SAGA_NEVER - 1 - wait)
		return SAGA_NEVER - 1;
	return Max(m->now + wait, 1);
}

/* ------------------------------------------------------- going forward */

static void
dispatch_ready(Machine *m)
{
	SagaState  *state = m->state;

	while (state->ready_head < state->nready)
	{
		int32		i = state->ready[state->ready_head++];
		const SagaNode *node = &m->graph->nodes[i];
		SagaStep   *step = &state->steps[i];

		if (step->status != SAGA_STEP_IDLE)
			continue;
		if (node->kind == SAGA_NODE_UNDO)
		{
			emit_simple(m, SAGA_RECORD_DONE, i, SAGA_OP_ACTION);
			continue;
		}
		step->lost = false;
		if (node->action_local)
			saga_step_set_status(state, step, SAGA_STEP_CALLING);
		else
			emit_simple(m, SAGA_RECORD_INTENT, i, SAGA_OP_ACTION);
		saga_call(m, i, SAGA_OP_ACTION);
	}
}

/*
 * Retries and claims whose time has come; finds the next due time.  A claim is
 * somebody's wish, so the deadline does not hold it back.
 */
static void
start_due(Machine *m)
{
	SagaState  *state = m->state;
	bool		undo = state->direction == SAGA_UNDO;

	if (state->nbackoff == 0 && state->nclaims == 0)
	{
		state->due_min = SAGA_NEVER;
		state->due_stale = false;
		return;
	}
	if (!state->due_stale && m->now < state->due_min)
		return;
	state->due_min = SAGA_NEVER;
	state->due_stale = false;
	for (int32 i = 0; i < m->graph->nnodes; i++)
	{
		SagaStep   *step = &state->steps[i];

		if (step->claiming)
		{
			if (step->claim_out)
				continue;
			if (step->claim_due <= m->now)
				saga_call(m, i, SAGA_OP_CLAIM);
			else
				state->due_min = Min(state->due_min, step->claim_due);
		}
		else if (step->status == (undo ? SAGA_STEP_UNDO_BACKOFF :
								  SAGA_STEP_BACKOFF) && !step->in_flight)
		{
			if (step->due <= m->now && !state->deadline_stuck)
				saga_call(m, i, undo ? SAGA_OP_UNDO : SAGA_OP_ACTION);
			else
				state->due_min = Min(state->due_min, step->due);
		}
	}
}

/* A call that should be out but is not: its start was gated, or it was lost. */
static void
restart_call(Machine *m, int32 node)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[node];

	state->due_stale = true;	/* retries are start_due()'s */
	if (!may_call(state) || step->in_flight || step->claiming)
		return;
	if (step->status == SAGA_STEP_CALLING && state->direction == SAGA_FORWARD)
		saga_call(m, node, SAGA_OP_ACTION);
	else if (step->status == SAGA_STEP_UNDO_CALLING)
		saga_call(m, node, SAGA_OP_UNDO);
}

static void
restart_calls(Machine *m)
{
	m->state->due_stale = true;
	for (int32 i = 0; i < m->graph->nnodes; i++)
		restart_call(m, i);
}

static void
stuck(Machine *m, int32 node, SagaOp op, SagaStuckReason reason)
{
	SagaRecord	record = saga_record(SAGA_RECORD_STUCK, node, op);

	record.reason = reason;
	saga_emit(m, &record);
}

/* Turn to undo. */
static void
turn(Machine *m, SagaCause cause, int32 node, const void *payload)
{
	SagaRecord	record = saga_record(SAGA_RECORD_UNDO, node, SAGA_OP_ACTION);

	record.cause = cause;
	record.payload = payload;
	if (saga_emit(m, &record))
		saga_undo_begin(m);
}

/* Ask the participant what became of the step's call. */
static void
claim(Machine *m, int32 node, const void *payload)
{
	SagaRecord	record = saga_record(SAGA_RECORD_INTENT, node, SAGA_OP_CLAIM);

	record.payload = payload;
	if (saga_emit(m, &record) && !m->state->paused)
		saga_call(m, node, SAGA_OP_CLAIM);
}

/* What follows from one failed step. */
static void
judge_step(Machine *m, int32 i)
{
	const SagaNode *node = &m->graph->nodes[i];
	SagaStep   *step = &m->state->steps[i];
	PivotPhase	phase;

	if (step->refused)
	{
		emit_simple(m, SAGA_RECORD_SKIPPED, i, SAGA_OP_ACTION);
		return;
	}
	if (step->last_kind == SAGA_ANSWER_BROKEN)
	{
		stuck(m, i, SAGA_OP_ACTION, SAGA_STUCK_BROKEN);
		return;
	}
	if (node->on_failure == SAGA_FAILURE_CONTINUE)
	{
		emit_simple(m, SAGA_RECORD_CONTINUED, i, SAGA_OP_ACTION);
		return;
	}
	phase = pivot_phase(m->state);
	if (node->on_failure == SAGA_FAILURE_STUCK || node->after_pivot ||
		phase == PIVOT_PASSED)
	{
		stuck(m, i, SAGA_OP_ACTION, SAGA_STUCK_DECLINED);
		return;
	}
	if (phase == PIVOT_OPEN)
	{
		turn(m, SAGA_CAUSE_DECLINED, i, NULL);
		return;
	}

	/*
	 * Held until the pivot's outcome is known.  A pivot that was declined
	 * itself, but has an earlier attempt that may still arrive, is claimed:
	 * then it has happened or never will.
	 */
	if (!node->pivot || step->claiming)
		return;
	if (step->claim_failed)
		stuck(m, i, SAGA_OP_ACTION, SAGA_STUCK_DECLINED);
	else
		claim(m, i, NULL);
}

static void
judge_failures(Machine *m)
{
	SagaState  *state = m->state;
	PivotPhase	phase;

	/* again, if the consequence for the pivot decides on those held for it */
	do
	{
		phase = pivot_phase(state);
		for (int32 i = 0; i < m->graph->nnodes; i++)
		{
			SagaStep   *step = &state->steps[i];

			if (state->nheld == 0 || state->direction != SAGA_FORWARD)
				return;
			if (step->status == SAGA_STEP_FAILED && !step->continued &&
				!step->claiming)
				judge_step(m, i);
		}
	} while (phase != pivot_phase(state));
}

/* Can the deadline still change anything, and now? */
static bool
deadline_armed(const SagaState *state)
{
	return state->deadline != SAGA_NEVER && !state->deadline_hit &&
		state->direction == SAGA_FORWARD && !state->paused &&
		!state->terminating && state->open + state->nheld > 0 &&
		pivot_phase(state) != PIVOT_UNSURE;
}

static void
check_deadline(Machine *m)
{
	if (m->now < m->state->deadline || !deadline_armed(m->state))
		return;
	if (pivot_phase(m->state) == PIVOT_OPEN)
		turn(m, SAGA_CAUSE_DEADLINE, SAGA_NO_NODE, NULL);
	else
		stuck(m, SAGA_NO_NODE, SAGA_OP_ACTION, SAGA_STUCK_DEADLINE);
}

/* ------------------------------------------------------- ending */

static void
end_saga(Machine *m, SagaStateName state, SagaCause cause)
{
	SagaRecord	record = saga_record(SAGA_RECORD_ENDED, SAGA_NO_NODE,
									 SAGA_OP_ACTION);

	if (m->state->in_flight > 0)
	{
		for (int32 i = SAGA_NODE_END; i < m->graph->nnodes; i++)
			forget_calls(m, i);
		if (m->state->stuck_hook_out)
		{
			m->state->stuck_hook_out = false;
			m->state->in_flight--;
			command(m, SAGA_CMD_CANCEL_CALL, SAGA_NODE_ON_STUCK, SAGA_OP_HOOK);
		}
	}
	record.state = state;
	record.cause = cause;
	if (saga_emit(m, &record))
		command(m, SAGA_CMD_ENDED, SAGA_NO_NODE, SAGA_OP_ACTION);
}

static void
end_in_direction(Machine *m)
{
	end_saga(m, m->state->direction == SAGA_FORWARD ? SAGA_COMPLETED :
			 SAGA_COMPENSATED, m->state->cause);
}

static inline bool
hook_over(const SagaState *state)
{
	return state->hook.status == SAGA_STEP_DONE ||
		state->hook.status == SAGA_STEP_SKIPPED;
}

/* Are all nodes settled, so that only the ending is left? */
static inline bool
all_settled(const SagaState *state)
{
	return state->direction == SAGA_FORWARD ?
		state->open + state->nheld == 0 : saga_undo_finished(state);
}

static void
finish(Machine *m)
{
	SagaState  *state = m->state;
	SagaStep   *hook = &state->hook;

	if (state->paused || hook->in_flight || !all_settled(state))
		return;
	if (!(state->direction == SAGA_FORWARD ? m->graph->has_on_completed :
		  m->graph->has_on_compensated))
		end_in_direction(m);
	else if (hook->status == SAGA_STEP_IDLE || hook->due <= m->now)
		saga_call(m, SAGA_NODE_END, SAGA_OP_HOOK);
}

/* May the step's current operation have happened, though no answer says so? */
static bool
is_doubtful(const SagaState *state, const SagaStep *step)
{
	if (in_undo_phase(step))
		return !is_local(state, step, true) &&
			(step->undo_maybe || step->in_flight || step->lost);
	if (is_local(state, step, false))
		return false;
	switch (step->status)
	{
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_STUCK:
		case SAGA_STEP_FAILED:
			return step->maybe || step->in_flight || step->lost;
		default:
			return false;
	}
}

/* Terminating: end once no call is out and none is in doubt. */
static void
advance_termination(Machine *m)
{
	SagaState  *state = m->state;
	bool		wait = state->hook.in_flight;

	state->due_min = SAGA_NEVER;
	state->due_stale = false;
	for (int32 i = 0; i < m->graph->nnodes; i++)
	{
		SagaStep   *step = &state->steps[i];

		if (step->in_flight || step->claim_out)
			wait = true;
		else if (step->claiming)
		{
			if (step->claim_due <= m->now)
				saga_call(m, i, SAGA_OP_CLAIM);
			else
				state->due_min = Min(state->due_min, step->claim_due);
			wait = true;
		}
		else if (is_doubtful(state, step))
		{
			claim(m, i, NULL);
			wait = true;
		}
	}
	if (!wait)
		end_saga(m, SAGA_TERMINATED, SAGA_CAUSE_OPERATOR);
}

/* Do all that has become possible. */
static void
advance(Machine *m)
{
	SagaState  *state = m->state;

	if (SAGA_STATE_ENDED(state->state) || !state->resumed)
		return;
	if (hook_over(state))
	{
		end_in_direction(m);
		return;
	}
	if (state->terminating)
	{
		advance_termination(m);
		return;
	}
	if (state->direction == SAGA_FORWARD)
	{
		judge_failures(m);
		check_deadline(m);
	}
	if (may_call(state))
	{
		if (state->direction == SAGA_FORWARD)
			dispatch_ready(m);
		else
			saga_undo_advance(m);
	}
	if (!state->paused)
		start_due(m);
	if (state->stuck_hooks > 0 && !state->stuck_hook_out && !state->paused)
		saga_call(m, SAGA_NODE_ON_STUCK, SAGA_OP_HOOK);
	finish(m);
}

/* ------------------------------------------------------- answers */

static SagaRecord
answer_record(const SagaEvent *event, bool done)
{
	SagaRecord	record = saga_record(done ? SAGA_RECORD_DONE :
									 SAGA_RECORD_FAILED,
									 event->node, event->op);

	record.answer = event->answer;
	record.payload = event->payload;
	return record;
}

static int32
plus_one(int32 n)
{
	return n < INT32_MAX ? n + 1 : n;
}

/*
 * A claim for a skip got no answer, but has taken effect, as the call's own
 * REFUSED now shows.
 */
static bool
skip_after_all(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];

	if (event->answer != SAGA_ANSWER_REFUSED || !step->skip_tried ||
		(event->op == SAGA_OP_ACTION &&
		 (state->direction == SAGA_UNDO || state->terminating)))
		return false;
	call_is_over(state, step);
	forget_calls(m, event->node);
	emit_simple(m, SAGA_RECORD_SKIPPED, event->node, event->op);
	if (event->op == SAGA_OP_UNDO)
		saga_undo_touch(m, event->node);
	return true;
}

/* Is a failed action to be tried again? */
static bool
wants_retry(const Machine *m, int32 i, const SagaEvent *event,
			const SagaRecord *record)
{
	const SagaNode *node = &m->graph->nodes[i];
	const SagaStep *step = &m->state->steps[i];

	if (m->state->direction == SAGA_UNDO || m->state->terminating)
		return false;
	switch (record->answer)
	{
		case SAGA_ANSWER_BROKEN:
			return step->broken + 1 < SAGA_BROKEN_LIMIT;
		case SAGA_ANSWER_TRANSIENT:
		case SAGA_ANSWER_UNKNOWN:
			return event->free || node->retry.max_attempts <= 0 ||
				record->attempt < node->retry.max_attempts ||
				node->after_pivot || (node->pivot && record->maybe);
		default:
			return false;
	}
}

static void
answer_action(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];
	bool		local = is_local(state, step, false);
	bool		done = event->answer == SAGA_ANSWER_DONE;
	SagaRecord	record = answer_record(event, done);

	if (skip_after_all(m, event))
		return;
	record.attempt = event->free ? step->attempts : plus_one(step->attempts);
	if (done)
	{
		/* of a local action DONE is the truth, awaited or not */
		if (!try_emit(m, &record))
		{
			m->out->ignored = "the answer is not awaited";
			return;
		}
		if (step->in_flight)
			call_is_over(state, step);
		forget_calls(m, event->node);
	}
	else
	{
		/*
		 * "No" is certain of this attempt only.  A key that is refused stays
		 * refused, for earlier attempts too.
		 */
		record.maybe = !local && (step->sticky || step->lost ||
								  event->answer == SAGA_ANSWER_UNKNOWN);
		if (event->answer == SAGA_ANSWER_REFUSED)
		{
			record.answer = SAGA_ANSWER_DECLINED;
			record.maybe = false;
		}
		if (wants_retry(m, event->node, event, &record))
			record.due = retry_at(m, &m->graph->nodes[event->node].retry,
								  record.attempt, event->retry_after);
		call_is_over(state, step);
		saga_emit(m, &record);
		step->lost = false;
	}
	if (state->direction == SAGA_UNDO && state->resumed)
		saga_undo_touch(m, event->node);
}

/* Tell an operator of an undo or ending hook that fails, once. */
static void
report_failures(Machine *m, int32 node)
{
	SagaStep   *step = step_of(m->state, node);

	if (m->state->terminating)
		return;
	if (node == SAGA_NODE_END)
	{
		if (step->status == SAGA_STEP_BACKOFF &&
			step->reason == SAGA_STUCK_NONE &&
			step->attempts >= SAGA_HOOK_LIMIT)
			stuck(m, node, SAGA_OP_HOOK, SAGA_STUCK_HOOK_FAILS);
	}
	else if (step->status == SAGA_STEP_UNDO_STUCK)
	{
		if (step->reason != SAGA_STUCK_BROKEN)
			stuck(m, node, SAGA_OP_UNDO, SAGA_STUCK_BROKEN);
	}
	else if (step->status == SAGA_STEP_UNDO_BACKOFF &&
			 step->reason == SAGA_STUCK_NONE &&
			 step->attempts >= SAGA_UNDO_LIMIT)
		stuck(m, node, SAGA_OP_UNDO, SAGA_STUCK_UNDO_FAILS);
}

static void
answer_undo(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];
	const SagaNode *node = &m->graph->nodes[event->node];
	bool		done = event->answer == SAGA_ANSWER_DONE;
	SagaRecord	record = answer_record(event, done);
	int32		attempts = undo_attempts(step);
	int			broken = step->status == SAGA_STEP_UNDO_BACKOFF ?
		step->broken : 0;

	if (skip_after_all(m, event))
		return;
	record.attempt = event->free ? attempts : plus_one(attempts);
	if (done)
	{
		if (!try_emit(m, &record))
		{
			m->out->ignored = "the answer is not awaited";
			return;
		}
		if (step->in_flight)
			call_is_over(state, step);
		forget_calls(m, event->node);
	}
	else
	{
		record.maybe = !node->compensation_local &&
			(step->sticky || step->lost ||
			 event->answer == SAGA_ANSWER_UNKNOWN);
		if (event->answer == SAGA_ANSWER_REFUSED)
			record.answer = SAGA_ANSWER_DECLINED;
		if (event->answer != SAGA_ANSWER_BROKEN || state->terminating ||
			broken + 1 < SAGA_BROKEN_LIMIT)
			record.due = retry_at(m, &node->undo_retry, record.attempt,
								  event->retry_after);
		call_is_over(state, step);
		saga_emit(m, &record);
		step->lost = false;
		report_failures(m, event->node);
	}
	if (state->resumed)
		saga_undo_touch(m, event->node);
}

static void
answer_claim(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];
	bool		undo = in_undo_phase(step);
	SagaRecord	record = answer_record(event,
									   event->answer == SAGA_ANSWER_DONE);

	claim_is_over(state, step);
	record.attempt = plus_one(step->claim_tries);
	if (event->answer == SAGA_ANSWER_DONE)
	{
		saga_emit(m, &record);
		forget_calls(m, event->node);
	}
	else if (event->answer == SAGA_ANSWER_REFUSED)
	{
		/* what is still out can no longer have an effect */
		forget_calls(m, event->node);
		record.kind = SAGA_RECORD_REFUSED;
		record.op = undo ? SAGA_OP_UNDO : SAGA_OP_ACTION;
		saga_emit(m, &record);
		if (step->refused)
			emit_simple(m, SAGA_RECORD_SKIPPED, event->node,
						undo ? SAGA_OP_UNDO : SAGA_OP_ACTION);
	}
	else
	{
		/* a skip is given up; nobody would hear of another claim's end */
		if (state->terminating ||
			(!step->claim_skip && event->answer != SAGA_ANSWER_BROKEN &&
			 record.attempt < SAGA_CLAIM_LIMIT))
			record.due = retry_at(m, &own_retry, record.attempt,
								  event->retry_after);
		saga_emit(m, &record);
		if (state->direction == SAGA_UNDO)
			saga_undo_settle(m, event->node);
		restart_call(m, event->node);
	}
	if (state->direction == SAGA_UNDO)
		saga_undo_touch(m, event->node);
}

static void
answer_hook(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *hook = &state->hook;
	SagaRecord	record = saga_record(SAGA_RECORD_HOOK, event->node,
									 SAGA_OP_HOOK);

	record.answer = event->answer;
	record.payload = event->payload;
	if (event->node == SAGA_NODE_ON_STUCK)
	{
		state->stuck_hook_out = false;
		state->in_flight--;
		saga_emit(m, &record);
		return;
	}
	record.attempt = event->free ? hook->attempts : plus_one(hook->attempts);
	if (event->answer != SAGA_ANSWER_DONE)
		record.due = retry_at(m, &own_retry, record.attempt,
							  event->retry_after);
	if (hook->in_flight)
		call_is_over(state, hook);
	saga_emit(m, &record);
	report_failures(m, SAGA_NODE_END);
}

/* Is this call out? */
static bool
is_out(const SagaState *state, int32 node, SagaOp op)
{
	const SagaStep *step;

	if (op == SAGA_OP_HOOK)
		return node == SAGA_NODE_ON_STUCK ? state->stuck_hook_out :
			node == SAGA_NODE_END && state->hook.in_flight;
	if (!is_node(state, node))
		return false;
	step = &state->steps[node];
	if (op == SAGA_OP_CLAIM)
		return step->claim_out;
	return step->in_flight && in_undo_phase(step) == (op == SAGA_OP_UNDO);
}

/* DONE of a local call is believed at any time: its effect is committed. */
static bool
is_local_truth(const SagaState *state, const SagaEvent *event)
{
	if (event->answer != SAGA_ANSWER_DONE)
		return false;
	if (event->op == SAGA_OP_HOOK)
		return event->node == SAGA_NODE_END && !hook_over(state) &&
			(!state->resumed || all_settled(state));
	return is_node(state, event->node) &&
		(event->op == SAGA_OP_ACTION ||
		 (event->op == SAGA_OP_UNDO && state->direction == SAGA_UNDO)) &&
		is_local(state, &state->steps[event->node],
				 event->op == SAGA_OP_UNDO);
}

static void
on_answer(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;

	if (event->answer > SAGA_ANSWER_REFUSED ||
		(!is_out(state, event->node, event->op) &&
		 !is_local_truth(state, event)))
	{
		m->out->ignored = "the answer is not awaited";
		return;
	}
	if (state->seq == 0)
		emit_simple(m, SAGA_RECORD_STARTED, SAGA_NO_NODE, SAGA_OP_ACTION);
	switch (event->op)
	{
		case SAGA_OP_ACTION:
			answer_action(m, event);
			break;
		case SAGA_OP_UNDO:
			answer_undo(m, event);
			break;
		case SAGA_OP_CLAIM:
			answer_claim(m, event);
			break;
		default:
			answer_hook(m, event);
			if (hook_over(state))
				end_in_direction(m);
			break;
	}
}

/* The worker is gone, and no outcome was recorded: the call goes out again. */
static void
on_lost(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step;

	if (!is_out(state, event->node, event->op))
	{
		m->out->ignored = "the call is not in flight";
		return;
	}
	if (event->node == SAGA_NODE_ON_STUCK)
	{
		state->stuck_hook_out = false;
		state->in_flight--;
		return;					/* advance() */
	}
	step = step_of(state, event->node);
	if (event->op == SAGA_OP_CLAIM)
	{
		claim_is_over(state, step);
		state->due_stale = true;
		return;					/* the same */
	}
	call_is_over(state, step);
	if (event->op == SAGA_OP_HOOK)
		return;					/* the same */
	step->lost = !is_local(state, step, event->op == SAGA_OP_UNDO);
	if (event->op == SAGA_OP_ACTION && state->direction == SAGA_UNDO)
		saga_undo_settle(m, event->node);
	else
		restart_call(m, event->node);
}

/* ------------------------------------------------------- verbs */

static const char *
cancel_refusal(const SagaState *state)
{
	int32		pivot = state->graph->pivot;

	if (state->terminating)
		return "the saga is being terminated";
	if (state->direction == SAGA_UNDO)
		return "the saga is already being undone";
	if (state->pivot_intent || pivot_phase(state) == PIVOT_PASSED)
		return "the pivot has been called, the saga can only go forward";
	if (pivot >= 0 && state->steps[pivot].in_flight)
		return "the pivot is running";
	if (state->hook.in_flight)
		return "the saga is ending";
	return NULL;
}

static const char *
hook_refusal(const SagaState *state, bool retry)
{
	if (state->hook.in_flight)
		return "the step is running";
	if (state->hook.status == SAGA_STEP_BACKOFF)
		return NULL;
	if (retry || !state->resumed || !all_settled(state) ||
		!(state->direction == SAGA_FORWARD ? state->graph->has_on_completed :
		  state->graph->has_on_compensated))
		return "the step has not been reached";
	return NULL;
}

static const char *
retry_refusal(const SagaState *state, int32 node)
{
	const SagaStep *step;
	bool		undo = state->direction == SAGA_UNDO;

	if (state->terminating)
		return "the saga is being terminated";
	if (node == SAGA_NODE_END)
		return hook_refusal(state, true);
	if (!is_node(state, node))
		return "there is no such step";
	step = &state->steps[node];
	if (step->in_flight)
		return "the step is running";
	if (step->claiming)
		return "an earlier verb on the step waits for its participant";
	if (undo ? step->status == SAGA_STEP_UNDO_STUCK ||
		step->status == SAGA_STEP_UNDO_BACKOFF :
		step->status == SAGA_STEP_STUCK || step->status == SAGA_STEP_BACKOFF)
		return NULL;
	return "the step does not wait for a retry";
}

static const char *
skip_refusal(const SagaState *state, int32 node, bool force)
{
	const SagaStep *step;
	bool		undo = state->direction == SAGA_UNDO;

	if (state->terminating)
		return "the saga is being terminated";
	if (node == SAGA_NODE_END)
		return hook_refusal(state, false);
	if (!is_node(state, node))
		return "there is no such step";
	step = &state->steps[node];
	switch (step->status)
	{
		case SAGA_STEP_IDLE:
			return undo ? "there is nothing to undo" :
				"the step has not been reached";
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_STUCK:
			if (undo)
				return "the answer of its action is awaited";
			break;
		case SAGA_STEP_FAILED:
			if (undo || step->continued)
				return "the step is over";
			break;
		case SAGA_STEP_DONE:
			return undo ? "its undo has not been reached" :
				"the step is done";
		case SAGA_STEP_UNDO_CALLING:
		case SAGA_STEP_UNDO_BACKOFF:
		case SAGA_STEP_UNDO_STUCK:
			break;
		default:
			return "the step is over";
	}
	if (step->in_flight && is_local(state, step, undo))
		return "the step is running";
	if (step->claiming && !force)
		return "an earlier verb on the step waits for its participant";
	return NULL;
}

const char *
saga_machine_verb_refusal(const SagaState *state, SagaVerb verb, int32 node,
						  bool force)
{
	if (SAGA_STATE_ENDED(state->state))
		return "the saga has ended";
	switch (verb)
	{
		case SAGA_VERB_CANCEL:
			return cancel_refusal(state);
		case SAGA_VERB_TERMINATE:
			return state->terminating && !force ?
				"the saga is already being terminated" : NULL;
		case SAGA_VERB_PAUSE:
			return state->terminating ? "the saga is being terminated" :
				state->paused ? "the saga is already paused" : NULL;
		case SAGA_VERB_RESUME:
			return state->paused || state->deadline_stuck ? NULL :
				"the saga is not paused";
		case SAGA_VERB_RETRY_STEP:
			return retry_refusal(state, node);
		case SAGA_VERB_SKIP_STEP:
			return skip_refusal(state, node, force);
		default:
			return "there is no such verb";
	}
}

static void
skip_step(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	bool		undo = state->direction == SAGA_UNDO;
	SagaRecord	record;

	if (event->node == SAGA_NODE_END)
		record = saga_record(SAGA_RECORD_SKIPPED, event->node, SAGA_OP_HOOK);
	else if (!event->force &&
			 is_doubtful(state, &state->steps[event->node]))
	{
		claim(m, event->node, event->payload);
		return;
	}
	else
		record = saga_record(SAGA_RECORD_SKIPPED, event->node,
							 undo ? SAGA_OP_UNDO : SAGA_OP_ACTION);
	record.payload = event->payload;
	forget_calls(m, event->node);
	saga_emit(m, &record);
	if (undo && event->node != SAGA_NODE_END)
		saga_undo_touch(m, event->node);
}

static void
retry_step(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	bool		held = state->deadline_stuck;
	SagaRecord	record = saga_record(SAGA_RECORD_RETRIED, event->node,
									 event->node == SAGA_NODE_END ? SAGA_OP_HOOK :
									 state->direction == SAGA_UNDO ? SAGA_OP_UNDO :
									 SAGA_OP_ACTION);

	record.payload = event->payload;
	saga_emit(m, &record);
	if (held)
		restart_calls(m);
}

/* The record of a verb that concerns the saga as a whole. */
static void
emit_verb(Machine *m, SagaRecordKind kind, const SagaEvent *event)
{
	SagaRecord	record = saga_record(kind, SAGA_NO_NODE, SAGA_OP_ACTION);

	record.payload = event->payload;
	saga_emit(m, &record);
}

static void
on_verb(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;

	m->out->ignored = saga_machine_verb_refusal(state, event->verb,
												event->node, event->force);
	if (m->out->ignored)
		return;
	if (state->seq == 0)
	{
		state->resumed = true;
		emit_simple(m, SAGA_RECORD_STARTED, SAGA_NO_NODE, SAGA_OP_ACTION);
	}

	/* neither could go on while paused */
	if (state->paused && (event->verb == SAGA_VERB_CANCEL ||
						  event->verb == SAGA_VERB_TERMINATE))
	{
		emit_simple(m, SAGA_RECORD_RESUMED, SAGA_NO_NODE, SAGA_OP_ACTION);
		state->due_stale = true;	/* of a claim held back */
	}
	switch (event->verb)
	{
		case SAGA_VERB_CANCEL:
			turn(m, SAGA_CAUSE_CANCELLED, SAGA_NO_NODE, event->payload);
			break;
		case SAGA_VERB_TERMINATE:
			if (!state->terminating)
				emit_verb(m, SAGA_RECORD_TERMINATING, event);
			if (event->force)
				end_saga(m, SAGA_TERMINATED, SAGA_CAUSE_OPERATOR);
			break;
		case SAGA_VERB_PAUSE:
			emit_verb(m, SAGA_RECORD_PAUSED, event);
			break;
		case SAGA_VERB_RESUME:
			emit_verb(m, SAGA_RECORD_RESUMED, event);
			restart_calls(m);
			break;
		case SAGA_VERB_RETRY_STEP:
			retry_step(m, event);
			break;
		default:
			skip_step(m, event);
			break;
	}
}

/* ------------------------------------------------------- entries */

static Machine
machine(SagaState *state, SagaTime now, double random, SagaDecision *out)
{
	Machine		m = {state, state->graph, now, random, out};

	return m;
}

void
saga_machine_decide(SagaState *state, const SagaEvent *event, SagaTime now,
					SagaDecision *out)
{
	Machine		m = machine(state, now, event->random, out);

	out->ignored = NULL;
	if (SAGA_STATE_ENDED(state->state))
	{
		out->ignored = "the saga has ended";
		return;
	}

	/* a folded state whose owner forgot to say so */
	if (!state->resumed && state->seq > 0 &&
		event->kind != SAGA_EVENT_ANSWER)
		saga_machine_resume(state, now, out);

	switch (event->kind)
	{
		case SAGA_EVENT_START:
			if (state->seq > 0)
			{
				out->ignored = "the saga has already started";
				return;
			}
			state->resumed = true;
			emit_simple(&m, SAGA_RECORD_STARTED, SAGA_NO_NODE, SAGA_OP_ACTION);
			if (event->payload)
				out->records[out->nrecords - 1].payload = event->payload;
			break;
		case SAGA_EVENT_ANSWER:
			on_answer(&m, event);
			break;
		case SAGA_EVENT_LOST:
			on_lost(&m, event);
			break;
		case SAGA_EVENT_TIMER:
			break;
		case SAGA_EVENT_VERB:
			on_verb(&m, event);
			break;
		default:
			out->ignored = "there is no such event";
			break;
	}
	if (out->ignored == NULL)
		advance(&m);
}

void
saga_machine_resume(SagaState *state, SagaTime now, SagaDecision *out)
{
	Machine		m = machine(state, now, 0.5, out);

	if (state->seq == 0 || SAGA_STATE_ENDED(state->state))
		return;
	if (!state->resumed)
	{
		state->resumed = true;
		state->ready_head = 0;

		/*
		 * A call of an earlier life may be under way: one with an intent, or
		 * a retry, even of a step whose time has not come (clocks go back).
		 */
		for (int32 i = 0; i < state->graph->nnodes && !state->clean; i++)
		{
			SagaStep   *step = &state->steps[i];

			if (step->status == SAGA_STEP_CALLING ||
				step->status == SAGA_STEP_BACKOFF)
				step->lost = !is_local(state, step, false);
			else if (step->status == SAGA_STEP_UNDO_CALLING ||
					 step->status == SAGA_STEP_UNDO_BACKOFF)
				step->lost = !is_local(state, step, true);
		}
		state->clean = false;
	}
	if (state->direction == SAGA_UNDO)
	{
		saga_undo_begin(&m);
		for (int32 i = 0; i < state->graph->nnodes; i++)
		{
			if (state->steps[i].refused)
			{
				emit_simple(&m, SAGA_RECORD_SKIPPED, i, SAGA_OP_UNDO);
				saga_undo_touch(&m, i);
			}
			report_failures(&m, i);
		}
	}
	report_failures(&m, SAGA_NODE_END);
	restart_calls(&m);
	advance(&m);
}

SagaTime
saga_machine_next_due(const SagaState *state)
{
	SagaTime	due = state->due_min;

	if (SAGA_STATE_ENDED(state->state) || state->seq == 0)
		return SAGA_NEVER;
	if (state->due_stale)
		due = 0;				/* only before resume(), which finds it */
	if (state->terminating)
		return due;
	if (state->paused)
		return SAGA_NEVER;
	if (state->deadline_stuck ||
		(state->nbackoff == 0 && state->nclaims == 0))
		due = SAGA_NEVER;
	if (deadline_armed(state))
		due = Min(due, state->deadline);
	if (state->hook.status == SAGA_STEP_BACKOFF && !state->hook.in_flight &&
		all_settled(state))
		due = Min(due, state->hook.due);
	return due;
}

bool
saga_machine_may_evict(const SagaState *state)
{
	if (!state->resumed || state->in_flight > 0)
		return false;
	for (int32 i = 0; i < state->graph->nnodes; i++)
		if (state->steps[i].lost)
			return false;
	return true;
}
