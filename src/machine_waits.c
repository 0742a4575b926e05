/*
 * machine_waits.c
 *		What a saga waits for without doing anything: a time, a signal, the
 *		answer of a call that was accepted.
 *
 * Called by the other machine_*.c.  The heap of times is ephemeral, found
 * again from the steps; who changes when a step must be looked at tells
 * machine_set_wake(), who changes it for many sets wakes_stale.
 */
#include "machine_private.h"

/* ------------------------------------------------------- times */

/* When the step must be looked at, or NEVER. */
static SagaTime
wake_at(const SagaState *state, const SagaStep *step)
{
	if (step->claiming)
		return step->claim_out ? SAGA_NEVER : step->claim_due;
	if (state->terminating || state->deadline_stuck)
		return SAGA_NEVER;
	switch (step->status)
	{
		case SAGA_STEP_BACKOFF:
			return step->in_flight || undoing(state, step) ? SAGA_NEVER :
				step->due;
		case SAGA_STEP_UNDO_BACKOFF:
			return step->in_flight ? SAGA_NEVER : step->due;
		case SAGA_STEP_ACCEPTED:
			if (undoing(state, step))
				return SAGA_NEVER;
			/* fall through */
		case SAGA_STEP_AWAITING:
		case SAGA_STEP_UNDO_ACCEPTED:
			return step->due == 0 ? SAGA_NEVER : step->due;
		case SAGA_STEP_SLEEPING:
			return step->due;
		default:
			return SAGA_NEVER;
	}
}

static void
put_wake(SagaState *state, int32 at, SagaWake wake)
{
	state->wakes[at] = wake;
	state->steps[wake.step].wake = at + 1;
}

/* Move the wake, whose place is free to be any, to where it belongs. */
static void
sift_wake(SagaState *state, int32 at, SagaWake wake)
{
	while (at > 0 && state->wakes[(at - 1) / 2].at > wake.at)
	{
		put_wake(state, at, state->wakes[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	for (;;)
	{
		int32		child = 2 * at + 1;

		if (child + 1 < state->nwakes &&
			state->wakes[child + 1].at < state->wakes[child].at)
			child++;
		if (child >= state->nwakes || state->wakes[child].at >= wake.at)
			break;
		put_wake(state, at, state->wakes[child]);
		at = child;
	}
	put_wake(state, at, wake);
}

void
machine_set_wake(SagaState *state, int32 i)
{
	SagaStep   *step = &state->steps[i];
	SagaWake	wake = {wake_at(state, step), i};
	int32		at = step->wake - 1;

	if (at >= 0)
	{
		if (state->wakes[at].at == wake.at)
			return;
		if (wake.at == SAGA_NEVER)
		{
			SagaWake	last = state->wakes[--state->nwakes];

			step->wake = 0;
			if (at < state->nwakes)
				sift_wake(state, at, last);
			return;
		}
		sift_wake(state, at, wake);
	}
	else if (wake.at != SAGA_NEVER)
	{
		state->wakes = machine_enlarge(state, state->wakes, state->nwakes,
									   &state->maxwakes, 1, sizeof(SagaWake));
		sift_wake(state, state->nwakes++, wake);
	}
}

/* Find all of them again. */
void
machine_find_wakes(SagaState *state)
{
	state->wakes_stale = false;
	state->nwakes = 0;
	for (int32 i = 0; i < state->nsteps; i++)
		state->steps[i].wake = 0;
	for (int32 i = 0; i < state->nsteps; i++)
		machine_set_wake(state, i);
}

/* An answer that did not come in time is an unknown one. */
static void
accepted_in_vain(Machine *m, int32 i, SagaOp op)
{
	SagaEvent	event;

	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_ANSWER;
	event.node = i;
	event.op = op;
	event.answer = SAGA_ANSWER_UNKNOWN;
	event.random = m->random;
	machine_answer_step(m, &event);
}

static void
signal_in_vain(Machine *m, int32 i)
{
	SagaRecord	record = machine_record(SAGA_RECORD_FAILED, i, SAGA_OP_ACTION);

	record.answer = SAGA_ANSWER_DECLINED;
	machine_emit(m, &record);
}

/*
 * What was due by now.  A claim is somebody's wish, so the deadline does not
 * hold it back.
 */
void
machine_start_due(Machine *m)
{
	SagaState  *state = m->state;

	if (state->wakes_stale)
		machine_find_wakes(state);
	while (state->nwakes > 0 && state->wakes[0].at <= m->now)
	{
		int32		i = state->wakes[0].step;
		SagaStep   *step = &state->steps[i];

		if (wake_at(state, step) > m->now)
			machine_set_wake(state, i);
		else if (step->claiming)
			machine_call(m, i, SAGA_OP_CLAIM);
		else
			switch (step->status)
			{
				case SAGA_STEP_BACKOFF:
					machine_begin_again(m, i);
					break;
				case SAGA_STEP_UNDO_BACKOFF:
					machine_call(m, i, SAGA_OP_UNDO);
					break;
				case SAGA_STEP_SLEEPING:
					machine_emit_simple(m, SAGA_RECORD_DONE, i,
										SAGA_OP_ACTION);
					break;
				case SAGA_STEP_AWAITING:
					signal_in_vain(m, i);
					break;
				case SAGA_STEP_ACCEPTED:
					accepted_in_vain(m, i, SAGA_OP_ACTION);
					break;
				default:
					accepted_in_vain(m, i, SAGA_OP_UNDO);
					break;
			}
		if (state->wakes_stale)
			machine_find_wakes(state);
	}
}

/* ------------------------------------------------------- signals */

/* The oldest mail of this signal. */
bool
machine_find_mail(const SagaState *state, int32 signal, int32 *seq)
{
	for (int32 i = 0; i < state->nmail; i++)
		if (state->mail[i].signal == signal)
		{
			*seq = state->mail[i].seq;
			return true;
		}
	return false;
}

/* Mail to those that wait for it, in the order in which they began to. */
void
machine_deliver_mail(Machine *m)
{
	SagaState  *state = m->state;
	int32		kept = 0;
	int32		k;
	int32		seq;

	if (!state->deliver)
		return;
	state->deliver = false;
	for (k = 0; k < state->awaiting.n && state->nmail > 0; k++)
	{
		int32		i = state->awaiting.items[k];
		const SagaStep *step = &state->steps[i];

		if (step->status != SAGA_STEP_AWAITING || step->replaced)
			continue;
		if (machine_find_mail(state, node_of(state, step)->signal, &seq))
			machine_emit_value(m, SAGA_RECORD_DONE, i, seq);
		else
			state->awaiting.items[kept++] = i;
	}
	if (kept == k)
		return;
	memmove(&state->awaiting.items[kept], &state->awaiting.items[k],
			sizeof(int32) * (size_t) (state->awaiting.n - k));
	state->awaiting.n -= k - kept;
}

void
machine_on_signal(Machine *m, const SagaEvent *event)
{
	SagaRecord	record = machine_record(SAGA_RECORD_SIGNAL, SAGA_NO_NODE,
										SAGA_OP_ACTION);

	if (event->value < 0 || event->value >= m->state->graph->nsignals)
	{
		m->out->ignored = "no step of the saga waits for this signal";
		return;
	}
	record.value = event->value;
	record.payload = event->payload;
	machine_emit(m, &record);
	m->state->deliver = true;
}

/* ------------------------------------------------------- accepted calls */

SagaTime
machine_time_out(const Machine *m, SagaTime timeout)
{
	if (timeout <= 0)
		return 0;
	if (m->now > SAGA_NEVER - 1 - timeout)
		return SAGA_NEVER - 1;
	return Max(m->now + timeout, 1);
}

static void
emit_accepted(Machine *m, int32 i, SagaOp op, SagaTime timeout,
			  const void *payload)
{
	SagaRecord	record = machine_record(SAGA_RECORD_ACCEPTED, i, op);

	record.due = machine_time_out(m, timeout);
	record.payload = payload;
	record.maybe = m->state->steps[i].sticky || m->state->steps[i].lost;
	machine_emit(m, &record);
}

/* The participant has taken the call on, and will answer some time. */
void
machine_accept(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];

	machine_call_is_over(state, step);
	emit_accepted(m, event->node, event->op, node_of(state, step)->timeout,
				  event->payload);
	machine_set_lost(state, step, false);
}

/* Can an answer that comes by itself be one of this operation? */
static bool
may_complete(const SagaState *state, const SagaEvent *event)
{
	const SagaStep *step;
	bool		done = event->answer == SAGA_ANSWER_DONE;
	bool		awaited;

	if (!is_step(state, event->node) || event->answer > SAGA_ANSWER_UNKNOWN)
		return false;
	step = &state->steps[event->node];

	/* between attempts a "no" may be news only of one that went unanswered */
	awaited = done || step->in_flight || step->sticky;
	if (event->op == SAGA_OP_UNDO)
		return in_undo_phase(step) && !is_local(state, step, true) &&
			(step->status == SAGA_STEP_UNDO_STUCK ? done :
			 step->status == SAGA_STEP_UNDO_ACCEPTED || awaited);
	if (event->op != SAGA_OP_ACTION || !is_sent(state, step) ||
		step->replaced)
		return false;
	switch (step->status)
	{
		case SAGA_STEP_ACCEPTED:
			return true;
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
			return awaited;
		case SAGA_STEP_STUCK:
			return done && step->maybe;
		default:
			return false;
	}
}

void
machine_on_completed(Machine *m, const SagaEvent *event)
{
	SagaStep   *step;

	if (!may_complete(m->state, event))
	{
		m->out->ignored = "the answer is not awaited";
		return;
	}

	/*
	 * A retry that is out may be a later attempt than the one that this is
	 * the answer of: then a "no" does not end the doubt.
	 */
	step = &m->state->steps[event->node];
	if (step->in_flight && (step->status == SAGA_STEP_BACKOFF ||
							step->status == SAGA_STEP_UNDO_BACKOFF))
		machine_set_lost(m->state, step, true);
	machine_forget_call(m, event->node);
	machine_answer_step(m, event);
}

/*
 * An accepted call is alive: it has its full time again.  A half more is
 * logged, so that not every heartbeat is.
 */
void
machine_on_heartbeat(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	const SagaStep *step;
	SagaTime	timeout;

	if (!is_step(state, event->node) ||
		(event->op != SAGA_OP_ACTION && event->op != SAGA_OP_UNDO) ||
		state->steps[event->node].status !=
		(event->op == SAGA_OP_UNDO ? SAGA_STEP_UNDO_ACCEPTED :
		 SAGA_STEP_ACCEPTED) || undoing(state, &state->steps[event->node]) !=
		(event->op == SAGA_OP_UNDO))
	{
		m->out->ignored = "the call has not been accepted, or is over";
		return;
	}
	step = &state->steps[event->node];
	timeout = node_of(state, step)->timeout;
	if (step->due > 0 && step->due < machine_time_out(m, timeout))
		emit_accepted(m, event->node, event->op, timeout + timeout / 2,
					  event->payload);
}

/*
 * Nobody could tell us while the coordinator was away: what ran out meanwhile
 * has its full time again.
 */
void
machine_waits_resume(Machine *m)
{
	SagaState  *state = m->state;

	for (int32 i = 0; i < state->nsteps; i++)
	{
		const SagaStep *step = &state->steps[i];
		bool		undo = step->status == SAGA_STEP_UNDO_ACCEPTED;

		if ((undo || step->status == SAGA_STEP_ACCEPTED) &&
			undo == undoing(state, step) && step->due > 0 &&
			step->due <= m->now && node_of(state, step)->timeout > 0)
			emit_accepted(m, i, undo ? SAGA_OP_UNDO : SAGA_OP_ACTION,
						  node_of(state, step)->timeout, NULL);
	}
}
