/*
 * machine.c
 *		What happens next: the machine's decisions (see machine.h).
 *
 * Owns the entries, the output, and the rules of retry, deadline, termination
 * and ending.  Called by the coordinator, one event at a time, and by the
 * simulator.  Neither this file nor the other machine_*.c may write a lasting
 * field of the state: those change only by machine_emit(), which applies the
 * record (machine_fold.c).  What is written directly is ephemeral: a call is
 * out; CALLING / UNDO_CALLING of a local call, EVALUATING.
 *
 * Each entry handles its event (machine_answers.c, machine_verbs.c,
 * machine_waits.c), and then
 * advance() does all that has become possible.  So resume() after a crash is
 * hardly more than advance() again.
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
const SagaRetry machine_own_retry = {
	0, SAGA_SECOND, 60 * SAGA_SECOND, 2.0, 0.0
};

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
machine_record(SagaRecordKind kind, int32 node, SagaOp op)
{
	SagaRecord	record;

	memset(&record, 0, sizeof(record));
	record.kind = kind;
	record.node = node;
	record.op = op;
	return record;
}

/* Give the record its number and let it act; false if it cannot follow. */
bool
machine_try_emit(Machine *m, SagaRecord *record)
{
	SagaDecision *out = m->out;
	bool		held = m->state->deadline_stuck;

	record->seq = m->state->seq + 1;
	if (!saga_machine_apply(m->state, record))
		return false;
	if (out->nrecords == out->maxrecords)
		out->records = grow(out->arena, out->records, out->nrecords,
							&out->maxrecords, sizeof(SagaRecord));
	out->records[out->nrecords++] = *record;

	/* when is it to be looked at again? */
	switch (record->kind)
	{
		case SAGA_RECORD_UNDO:
		case SAGA_RECORD_RESTARTED:
		case SAGA_RECORD_TERMINATING:
			m->state->wakes_stale = true;
			break;
		default:
			if (is_step(m->state, record->node))
				machine_set_wake(m->state, record->node);
			m->state->wakes_stale |= held != m->state->deadline_stuck;
			break;
	}
	return true;
}

bool
machine_emit(Machine *m, SagaRecord *record)
{
	bool		possible = machine_try_emit(m, record);

	Assert(possible);
	if (!possible)
		m->out->ignored = "the state machine decided on an impossible record";
	return possible;
}

bool
machine_emit_simple(Machine *m, SagaRecordKind kind, int32 node, SagaOp op)
{
	SagaRecord	record = machine_record(kind, node, op);

	return machine_emit(m, &record);
}

bool
machine_emit_value(Machine *m, SagaRecordKind kind, int32 node, int64 value)
{
	SagaRecord	record = machine_record(kind, node, SAGA_OP_ACTION);

	record.value = value;
	return machine_emit(m, &record);
}

bool
machine_emit_due(Machine *m, SagaRecordKind kind, int32 node, SagaTime due)
{
	SagaRecord	record = machine_record(kind, node, SAGA_OP_ACTION);

	record.due = due;
	return machine_emit(m, &record);
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

/* Send the call; what it is for must be in the state (or log) already. */
void
machine_call(Machine *m, int32 node, SagaOp op)
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
	step = machine_step(m->state, node);
	if (op == SAGA_OP_CLAIM)
	{
		step->claim_out = true;
		cmd->attempt = step->claim_tries + 1;
		cmd->target = in_undo_phase(step) ? SAGA_OP_UNDO : SAGA_OP_ACTION;
		machine_set_wake(m->state, node);
		return;
	}
	step->in_flight = true;
	if (op == SAGA_OP_EVAL)
	{
		SagaEval	eval;

		machine_needs_eval(m->state, step, &eval);
		cmd->eval = eval;
	}
	if (op != SAGA_OP_HOOK)
		machine_set_wake(m->state, node);
	cmd->attempt = (op == SAGA_OP_UNDO ? undo_attempts(step) :
					step->attempts) + 1;
	cmd->conditional = op == SAGA_OP_UNDO && !step->happened;
}

void
machine_call_is_over(SagaState *state, SagaStep *step)
{
	step->in_flight = false;
	state->in_flight--;
	if (step != &state->hook)
		machine_set_wake(state, index_of(state, step));
}

void
machine_claim_is_over(SagaState *state, SagaStep *step)
{
	step->claim_out = false;
	state->in_flight--;
	machine_set_wake(state, index_of(state, step));
}

void
machine_set_lost(SagaState *state, SagaStep *step, bool lost)
{
	state->nlost += (int32) lost - (int32) step->lost;
	step->lost = lost;
}

/* The step's call, if one is out, no longer matters. */
void
machine_forget_call(Machine *m, int32 node)
{
	SagaStep   *step = machine_step(m->state, node);

	if (!step->in_flight)
		return;
	command(m, SAGA_CMD_CANCEL_CALL, node, machine_op(m->state, step));
	machine_call_is_over(m->state, step);
}

/* Whatever is still out for the step no longer matters. */
void
machine_forget_calls(Machine *m, int32 node)
{
	SagaStep   *step = machine_step(m->state, node);

	machine_forget_call(m, node);
	if (step->claim_out)
	{
		machine_claim_is_over(m->state, step);
		command(m, SAGA_CMD_CANCEL_CALL, node, SAGA_OP_CLAIM);
	}
	if (node != SAGA_NODE_END)
		machine_set_lost(m->state, step, false);
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
SagaTime
machine_retry_at(const Machine *m, const SagaRetry *retry, int32 n,
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

/* ------------------------------------------------------- what was held back */

/*
 * Calls that should be out but are not: they were held back by a pause or the
 * deadline, or their worker was lost, or the coordinator crashed.
 */
static void
restart_calls(Machine *m)
{
	SagaState  *state = m->state;

	if (!state->restart)
		return;
	state->restart = false;
	for (int32 i = 0; i < state->nsteps; i++)
	{
		const SagaStep *step = &state->steps[i];

		if (step->in_flight || step->claiming || step->replaced)
			continue;
		if (step->status == SAGA_STEP_UNDO_CALLING)
			machine_call(m, i, SAGA_OP_UNDO);
		else if (undoing(state, step))
			continue;
		else if (step->status == SAGA_STEP_CALLING)
			machine_call(m, i, SAGA_OP_ACTION);
		else if (step->status == SAGA_STEP_EVALUATING)
			machine_call(m, i, SAGA_OP_EVAL);
		else if (step->status == SAGA_STEP_SCOPED)
			machine_continue_body(m, i);
	}
}

/* To be done by advance(), which may find that it is no longer wanted. */
void
machine_restart_calls(SagaState *state)
{
	state->restart = true;		/* retries are machine_start_due()'s */
}

void
machine_stuck(Machine *m, int32 node, SagaOp op, SagaStuckReason reason)
{
	SagaRecord	record = machine_record(SAGA_RECORD_STUCK, node, op);

	record.reason = reason;
	machine_emit(m, &record);
}

/* Turn to undo, of all or of what follows a save-point. */
void
machine_turn(Machine *m, SagaCause cause, int32 node, int32 back_to,
			 const void *payload)
{
	SagaRecord	record = machine_record(SAGA_RECORD_UNDO, node, SAGA_OP_ACTION);

	record.cause = cause;
	record.payload = payload;
	record.value = back_to == SAGA_NO_NODE ? 0 : 1 + back_to;
	if (machine_emit(m, &record))
		machine_undo_begin(m);
}

/* Ask the participant what became of the step's call. */
void
machine_claim(Machine *m, int32 node, const void *payload)
{
	SagaRecord	record = machine_record(SAGA_RECORD_INTENT, node, SAGA_OP_CLAIM);

	record.payload = payload;
	if (machine_emit(m, &record) && !m->state->paused)
		machine_call(m, node, SAGA_OP_CLAIM);
}

/* Can the deadline still change anything, and now? */
static bool
deadline_armed(const SagaState *state)
{
	return state->deadline != SAGA_NEVER && !state->deadline_hit &&
		going_forward(state) && !state->paused &&
		!state->terminating && !all_settled(state) &&
		pivot_phase(state) != PIVOT_UNSURE;
}

static void
check_deadline(Machine *m)
{
	if (m->now < m->state->deadline || !deadline_armed(m->state))
		return;
	if (pivot_phase(m->state) == PIVOT_OPEN)
		machine_turn(m, SAGA_CAUSE_DEADLINE, SAGA_NO_NODE, SAGA_NO_NODE,
					 NULL);
	else
		machine_stuck(m, SAGA_NO_NODE, SAGA_OP_ACTION, SAGA_STUCK_DEADLINE);
}

/* ------------------------------------------------------- ending */

void
machine_end(Machine *m, SagaStateName state, SagaCause cause)
{
	SagaRecord	record = machine_record(SAGA_RECORD_ENDED, SAGA_NO_NODE,
									 SAGA_OP_ACTION);

	if (m->state->in_flight > 0)
	{
		for (int32 i = SAGA_NODE_END; i < m->state->nsteps; i++)
			machine_forget_calls(m, i);
		if (m->state->stuck_hook_out)
		{
			m->state->stuck_hook_out = false;
			m->state->in_flight--;
			command(m, SAGA_CMD_CANCEL_CALL, SAGA_NODE_ON_STUCK, SAGA_OP_HOOK);
		}
	}
	record.state = state;
	record.cause = cause;
	if (machine_emit(m, &record))
		command(m, SAGA_CMD_ENDED, SAGA_NO_NODE, SAGA_OP_ACTION);
}

void
machine_end_in_direction(Machine *m)
{
	machine_end(m, m->state->direction == SAGA_FORWARD ? SAGA_COMPLETED :
			 SAGA_COMPENSATED, m->state->cause);
}

static void
finish(Machine *m)
{
	SagaState  *state = m->state;
	SagaStep   *hook = &state->hook;

	if (state->paused || hook->in_flight || !all_settled(state))
		return;
	if (!has_ending_hook(state))
		machine_end_in_direction(m);
	else if (hook->status == SAGA_STEP_IDLE || hook->due <= m->now)
		machine_call(m, SAGA_NODE_END, SAGA_OP_HOOK);
}

/* All that followed the save-point is undone: forward again from there. */
static void
go_on_from_savepoint(Machine *m)
{
	SagaState  *state = m->state;

	if (state->back_to != SAGA_NO_NODE && machine_undo_finished(state))
		machine_emit_simple(m, SAGA_RECORD_RESTARTED, state->back_to,
							SAGA_OP_ACTION);
}

/* May the step's current operation have happened, though no answer says so? */
bool
machine_is_doubtful(const SagaState *state, const SagaStep *step)
{
	if (in_undo_phase(step))
		return !is_local(state, step, true) &&
			(step->undo_maybe || step->in_flight || step->lost);
	if (!is_sent(state, step))
		return false;
	switch (step->status)
	{
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_STUCK:
		case SAGA_STEP_FAILED:
		case SAGA_STEP_ACCEPTED:
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

	machine_find_wakes(state);
	for (int32 i = 0; i < m->state->nsteps; i++)
	{
		SagaStep   *step = &state->steps[i];

		if (step->claiming && !step->claim_out && step->claim_due <= m->now)
			machine_call(m, i, SAGA_OP_CLAIM);
		if (step->in_flight || step->claiming)
			wait = true;
		else if (machine_is_doubtful(state, step))
		{
			machine_claim(m, i, NULL);
			wait = true;
		}
	}
	if (!wait)
		machine_end(m, SAGA_TERMINATED, SAGA_CAUSE_OPERATOR);
}

/* Do all that has become possible. */
static void
advance(Machine *m)
{
	SagaState  *state = m->state;
	int			nrecords;

	if (SAGA_STATE_ENDED(state->state) || !state->resumed)
		return;
	if (hook_over(state))
	{
		machine_end_in_direction(m);
		return;
	}
	if (state->terminating)
	{
		advance_termination(m);
		return;
	}

	/* again, as long as one thing makes another possible */
	do
	{
		nrecords = m->out->nrecords;
		if (state->direction == SAGA_FORWARD)
			machine_judge_failures(m);
		check_deadline(m);
		if (may_call(state))
		{
			restart_calls(m);
			machine_deliver_mail(m);
			if (going_forward(state))
				machine_begin_ready(m);
			if (state->direction == SAGA_UNDO)
				machine_undo_advance(m);
		}
		if (!state->paused)
			machine_start_due(m);
		if (may_call(state))
			go_on_from_savepoint(m);
	} while (m->out->nrecords != nrecords);
	if (state->wakes_stale)
		machine_find_wakes(state);
	if (state->stuck_hooks > 0 && !state->stuck_hook_out && !state->paused)
		machine_call(m, SAGA_NODE_ON_STUCK, SAGA_OP_HOOK);
	finish(m);
}

/* ------------------------------------------------------- entries */

static Machine
machine(SagaState *state, SagaTime now, double random, SagaDecision *out)
{
	Machine		m = {state, now, random, out};

	return m;
}

/* The first record, if it is not there yet. */
static void
start(Machine *m, const void *payload)
{
	SagaRecord	record = machine_record(SAGA_RECORD_STARTED, SAGA_NO_NODE,
										SAGA_OP_ACTION);

	if (m->state->seq > 0)
		return;
	m->state->resumed = true;
	record.payload = payload;
	machine_emit(m, &record);
}

void
saga_machine_decide(SagaState *state, const SagaEvent *event, SagaTime now,
					SagaDecision *out)
{
	Machine		m = machine(state, now, event->random, out);

	out->ignored = NULL;
	if (SAGA_STATE_ENDED(state->state) &&
		(event->kind != SAGA_EVENT_VERB ||
		 event->verb != SAGA_VERB_UNDO_COMPLETED))
	{
		out->ignored = "the saga has ended";
		return;
	}

	/* a folded state whose owner forgot to say so */
	if (!state->resumed && state->seq > 0 &&
		event->kind != SAGA_EVENT_ANSWER && !SAGA_STATE_ENDED(state->state))
		saga_machine_resume(state, now, out);

	switch (event->kind)
	{
		case SAGA_EVENT_START:
			if (state->seq > 0)
			{
				out->ignored = "the saga has already started";
				return;
			}
			start(&m, event->payload);
			break;
		case SAGA_EVENT_ANSWER:
			machine_on_answer(&m, event);
			break;
		case SAGA_EVENT_LOST:
			machine_on_lost(&m, event);
			break;
		case SAGA_EVENT_TIMER:
			break;
		case SAGA_EVENT_VERB:
			machine_on_verb(&m, event);
			break;
		case SAGA_EVENT_COMPLETED:
			machine_on_completed(&m, event);
			break;
		case SAGA_EVENT_HEARTBEAT:
			machine_on_heartbeat(&m, event);
			break;
		case SAGA_EVENT_SIGNAL:
			start(&m, NULL);
			machine_on_signal(&m, event);
			break;
		default:
			out->ignored = "there is no such event";
			break;
	}
	if (out->ignored == NULL)
		advance(&m);
}

/*
 * A call of an earlier life may be under way: one with an intent, or a retry,
 * even of a step whose time has not come (clocks go back).
 */
static void
find_lost_calls(Machine *m)
{
	SagaState  *state = m->state;

	for (int32 i = 0; i < state->nsteps; i++)
	{
		SagaStep   *step = &state->steps[i];

		if (step->status == SAGA_STEP_CALLING ||
			step->status == SAGA_STEP_BACKOFF)
			machine_set_lost(state, step, is_sent(state, step));
		else if (step->status == SAGA_STEP_UNDO_CALLING ||
				 step->status == SAGA_STEP_UNDO_BACKOFF)
			machine_set_lost(state, step, !is_local(state, step, true));
		machine_give_up_once(m, i);
	}
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

		if (!state->clean)
		{
			find_lost_calls(&m);
			machine_waits_resume(&m);
		}
		state->clean = false;
	}
	if (state->direction == SAGA_UNDO)
	{
		machine_undo_begin(&m);
		for (int32 i = 0; i < state->nsteps; i++)
		{
			if (state->steps[i].refused && undoing(state, &state->steps[i]))
			{
				machine_emit_simple(&m, SAGA_RECORD_SKIPPED, i, SAGA_OP_UNDO);
				machine_undo_touch(&m, i);
			}
			machine_report_failures(&m, i);
		}
	}
	machine_report_failures(&m, SAGA_NODE_END);
	machine_restart_calls(state);
	state->deliver = true;
	state->wakes_stale = true;
	advance(&m);
}

SagaTime
saga_machine_next_due(const SagaState *state)
{
	SagaTime	due = state->nwakes > 0 ? state->wakes[0].at : SAGA_NEVER;

	if (SAGA_STATE_ENDED(state->state) || state->seq == 0)
		return SAGA_NEVER;
	if (!state->resumed)
		return 0;				/* resume() finds it */
	if (state->paused && !state->terminating)
		return SAGA_NEVER;
	if (deadline_armed(state))
		due = Min(due, state->deadline);
	if (state->hook.status == SAGA_STEP_BACKOFF && !state->hook.in_flight &&
		!state->terminating && all_settled(state))
		due = Min(due, state->hook.due);
	return due;
}

bool
saga_machine_may_evict(const SagaState *state)
{
	return state->resumed && state->in_flight == 0 && state->nlost == 0;
}
