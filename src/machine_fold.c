/*
 * machine_fold.c
 *		The fold of the log: what a record does to the state, and whether it
 *		can follow that state at all (see machine.h).
 *
 * saga_machine_apply() is the only writer of the lasting part of a SagaState:
 * machine.c applies each record it decides on, recovery applies what it reads.
 * Here nothing may depend on an ephemeral field, or recovery would arrive at
 * another state than the one that was lost.
 *
 * Every apply_*() checks first and returns false with the state untouched.
 */
#include "machine_private.h"

/* ------------------------------------------------------- shared effects */

/* Is something being done about the step, other than waiting? */
static bool
is_busy(const SagaState *state, const SagaStep *step)
{
	switch (step->status)
	{
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_UNDO_BACKOFF:
			return true;
		case SAGA_STEP_UNDO_CALLING:
			return !is_local(state, step, true);
		case SAGA_STEP_CALLING:
			if (!is_local(state, step, false))
				return true;
			/* fall through */
		case SAGA_STEP_IDLE:
		case SAGA_STEP_EVALUATING:
			/* what is ephemeral must not be told apart */
			return !undoing(state, step) && step->unmet == 0;
		default:
			return false;
	}
}

static bool
is_waiting(const SagaState *state, const SagaStep *step)
{
	switch (step->status)
	{
		case SAGA_STEP_SLEEPING:
		case SAGA_STEP_AWAITING:
		case SAGA_STEP_ACCEPTED:
			return !undoing(state, step);
		case SAGA_STEP_UNDO_ACCEPTED:
			return true;
		default:
			return false;
	}
}

/*
 * What the step adds to the counts.  Whoever changes a field that this looks
 * at takes the step out before and puts it in again after.
 */
void
machine_count(SagaState *state, const SagaStep *step, int32 by)
{
	if (step->replaced && !in_undo_phase(step))
		return;					/* only its undo still counts */
	if (step_is_open(step->status))
		state->open += by;
	if (step->status == SAGA_STEP_FAILED && !step->continued &&
		!undoing(state, step))
		state->nheld += by;
	if (is_busy(state, step))
		state->nbusy += by;
	if (is_waiting(state, step))
		state->nwaiting += by;
}

/* The direction has changed, or many steps have. */
void
machine_recount(SagaState *state)
{
	state->open = state->nheld = state->nbusy = state->nwaiting = 0;
	for (int32 i = 0; i < state->nsteps; i++)
		machine_count(state, &state->steps[i], 1);
}

/* Every change of a status, so that the counts hold. */
void
machine_set_status(SagaState *state, SagaStep *step, SagaStepStatus status)
{
	if (step->status == status)
		return;
	machine_count(state, step, -1);
	step->status = status;
	machine_count(state, step, 1);

	/* work for machine_judge_failures() and machine_deliver_mail() */
	if (status == SAGA_STEP_FAILED && !step->listed && !undoing(state, step))
	{
		step->listed = true;
		machine_push(state, &state->failed, index_of(state, step));
	}
	if (status == SAGA_STEP_AWAITING)
		machine_push(state, &state->awaiting, index_of(state, step));
}

void
machine_choose_stuck(SagaState *state)
{
	state->stuck_node = SAGA_NO_NODE;
	state->stuck_reason = SAGA_STUCK_NONE;
	if (state->deadline_stuck)
		state->stuck_reason = SAGA_STUCK_DEADLINE;
	else if (state->hook.reason != SAGA_STUCK_NONE)
	{
		state->stuck_node = SAGA_NODE_END;
		state->stuck_reason = state->hook.reason;
	}
	else if (state->nstuck > 0)
	{
		int32		node = 0;

		while (state->steps[node].reason == SAGA_STUCK_NONE)
			node++;
		state->stuck_node = node;
		state->stuck_reason = state->steps[node].reason;
	}
}

/* The step needs nobody any more. */
void
machine_relieve(SagaState *state, SagaStep *step)
{
	if (step->reason == SAGA_STUCK_NONE)
		return;
	step->reason = SAGA_STUCK_NONE;
	state->nstuck--;
	machine_choose_stuck(state);
}

/* ------------------------------------------------------- the direction */

/*
 * No action of the step will be tried again, so it needs nobody; but its undo
 * may, if that has begun already to go back to a save-point.
 */
static void
turn_step(SagaState *state, SagaStep *step)
{
	if (in_undo_phase(step))
		return;
	machine_relieve(state, step);
	step->refused = false;
	if (step->status == SAGA_STEP_STUCK)
		step->status = SAGA_STEP_FAILED;
	else if (step->status == SAGA_STEP_SLEEPING ||
			 step->status == SAGA_STEP_AWAITING ||
			 (step->status == SAGA_STEP_BACKOFF &&
			  node_of(state, step)->kind != SAGA_NODE_STEP))
		step->status = SAGA_STEP_NOT_TAKEN;
}

/* Of the saga, or of what follows a save-point. */
static bool
apply_undo(SagaState *state, const SagaRecord *record)
{
	const SagaStep *pivot = pivot_step(state);
	bool		back = record->value != 0;
	int32		savepoint = (int32) record->value - 1;
	bool		with_pivot = pivot != NULL;

	if (!(state->direction == SAGA_FORWARD ||
		  (!back && state->back_to != SAGA_NO_NODE)) || state->terminating ||
		record->cause == SAGA_CAUSE_NONE ||
		record->cause > SAGA_CAUSE_OPERATOR ||
		(record->node != SAGA_NO_NODE && !is_step(state, record->node)))
		return false;
	if (back)
	{
		const SagaStep *step;

		if (record->value < 0 || record->value > state->nsteps ||
			record->node == SAGA_NO_NODE ||
			state->hook.status != SAGA_STEP_IDLE)
			return false;
		step = &state->steps[savepoint];
		if (step->status != SAGA_STEP_DONE || step->replaced ||
			node_of(state, step)->kind != SAGA_NODE_SAVEPOINT)
			return false;
		with_pivot = node_of(state, step)->before_pivot;
	}
	if (with_pivot && (pivot_phase(state) == PIVOT_PASSED || pivot->maybe))
		return false;
	if (back && !machine_mark_region(state, savepoint, record->node))
		return false;

	state->direction = SAGA_UNDO;
	state->cause = record->cause;
	state->failed_node = record->node;
	state->back_to = back ? savepoint : SAGA_NO_NODE;
	for (int32 i = 0; i < state->nsteps; i++)
		if (undoing(state, &state->steps[i]))
			turn_step(state, &state->steps[i]);
	if (with_pivot)
		state->pivot_intent = false;
	if (!back)
	{
		machine_relieve(state, &state->hook);
		memset(&state->hook, 0, sizeof(SagaStep));
		state->deadline_stuck = false;
	}
	machine_recount(state);
	machine_choose_stuck(state);
	return true;
}

static bool
apply_stuck(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (record->reason == SAGA_STUCK_NONE ||
		record->reason > SAGA_STUCK_HOOK_FAILS)
		return false;
	if (record->reason == SAGA_STUCK_DEADLINE)
	{
		if (record->node != SAGA_NO_NODE || state->deadline_hit ||
			!going_forward(state))
			return false;
		state->deadline_hit = true;
		state->deadline_stuck = true;
	}
	else
	{
		if (record->node == SAGA_NODE_END)
		{
			step = &state->hook;
			if (step->status != SAGA_STEP_BACKOFF)
				return false;
		}
		else if (!is_step(state, record->node))
			return false;
		else
		{
			step = &state->steps[record->node];
			if (!undoing(state, step))
			{
				if (step->status != SAGA_STEP_FAILED || step->continued ||
					step->replaced)
					return false;
				machine_set_status(state, step, SAGA_STEP_STUCK);
			}
			else if (step->status != SAGA_STEP_UNDO_BACKOFF &&
					 step->status != SAGA_STEP_UNDO_STUCK)
				return false;
		}
		if (step->reason == SAGA_STUCK_NONE)
			state->nstuck++;
		step->reason = record->reason;
	}
	state->stuck_node = record->node;
	state->stuck_reason = record->reason;
	if (state->graph->has_on_stuck && state->stuck_hooks < INT32_MAX)
	{
		state->stuck_hooks++;
		state->stuck_hook_due = true;
	}
	return true;
}

static bool
apply_hook(SagaState *state, const SagaRecord *record)
{
	SagaStep   *hook = &state->hook;

	if (record->answer > SAGA_ANSWER_REFUSED || record->attempt < 0 ||
		record->due < 0)
		return false;
	if (record->node == SAGA_NODE_ON_STUCK)
	{
		if (state->stuck_hooks <= 0)
			return false;
		state->stuck_hooks--;
		state->stuck_hook_due = state->stuck_hooks > 0;
		return true;
	}
	if (record->node != SAGA_NODE_END || state->back_to != SAGA_NO_NODE ||
		hook->status == SAGA_STEP_DONE || hook->status == SAGA_STEP_SKIPPED)
		return false;
	hook->last_kind = record->answer;
	hook->attempts = record->attempt;
	hook->due = record->due;
	if (record->answer == SAGA_ANSWER_DONE)
	{
		machine_relieve(state, hook);
		hook->status = SAGA_STEP_DONE;
	}
	else
		hook->status = SAGA_STEP_BACKOFF;
	return true;
}

static bool
apply_ended(SagaState *state, const SagaRecord *record)
{
	bool		hook_over = state->hook.status == SAGA_STEP_DONE ||
		state->hook.status == SAGA_STEP_SKIPPED;

	if (record->cause > SAGA_CAUSE_OPERATOR)
		return false;
	switch (record->state)
	{
			/*
			 * A hook that is over ended the saga in its own transaction; a
			 * record of the last step may then have been lost in a crash.
			 */
		case SAGA_COMPLETED:
			if (state->direction != SAGA_FORWARD ||
				(!hook_over && (state->graph->has_on_completed ||
								state->open + state->nheld > 0)))
				return false;
			break;
		case SAGA_COMPENSATED:
			if (state->direction != SAGA_UNDO ||
				state->back_to != SAGA_NO_NODE ||
				(!hook_over && state->graph->has_on_compensated))
				return false;
			break;
		case SAGA_TERMINATED:
			if (!state->terminating)
				return false;
			break;
		default:
			return false;
	}
	state->state = record->state;
	state->cause = record->cause;
	return true;
}

static bool
apply_signal(SagaState *state, const SagaRecord *record)
{
	SagaMail   *mail;

	if (record->value < 0 || record->value >= state->graph->nsignals)
		return false;
	state->mail = machine_enlarge(state, state->mail, state->nmail,
								  &state->maxmail, 1, sizeof(SagaMail));
	mail = &state->mail[state->nmail++];
	mail->signal = (int32) record->value;
	mail->seq = record->seq;
	return true;
}

/* ------------------------------------------------------- from outside */

static bool
apply_deadline(SagaState *state, const SagaRecord *record)
{
	if (record->due < 0 || !going_forward(state))
		return false;
	state->deadline = record->due == 0 ? SAGA_NEVER : record->due;
	state->deadline_hit = false;
	if (state->deadline_stuck)
	{
		state->deadline_stuck = false;
		machine_choose_stuck(state);
	}
	return true;
}

static bool
apply_breakpoint(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (!is_step(state, record->node))
		return false;
	step = &state->steps[record->node];
	switch (record->value)
	{
		case 0:
		case 1:
			if (step->status != SAGA_STEP_IDLE || step->replaced)
				return false;
			step->breakpoint = record->value == 1;
			return true;
		case 2:
			if (!step->breakpoint || step->unmet > 0 || state->paused ||
				state->terminating)
				return false;
			step->breakpoint = false;
			state->paused = true;
			return true;
		default:
			return false;
	}
}

/* A child's parent undoes it: what has been completed is undone after all. */
static bool
apply_reopened(SagaState *state, const SagaRecord *record)
{
	if (state->state != SAGA_COMPLETED || record->cause == SAGA_CAUSE_NONE ||
		record->cause > SAGA_CAUSE_OPERATOR ||
		pivot_phase(state) == PIVOT_PASSED)
		return false;
	machine_relieve(state, &state->hook);
	memset(&state->hook, 0, sizeof(SagaStep));
	state->direction = SAGA_UNDO;
	state->cause = record->cause;
	state->pivot_intent = false;
	machine_recount(state);
	return true;
}

static bool
apply_by_kind(SagaState *state, const SagaRecord *record)
{
	switch (record->kind)
	{
		case SAGA_RECORD_STARTED:
			machine_start_run(state, 0);
			return true;
		case SAGA_RECORD_INTENT:
		case SAGA_RECORD_DONE:
		case SAGA_RECORD_FAILED:
		case SAGA_RECORD_CONTINUED:
		case SAGA_RECORD_SKIPPED:
		case SAGA_RECORD_RETRIED:
		case SAGA_RECORD_REFUSED:
		case SAGA_RECORD_ACCEPTED:
		case SAGA_RECORD_SLEEPING:
		case SAGA_RECORD_AWAITING:
			return machine_apply_step(state, record);
		case SAGA_RECORD_UNDO:
			return apply_undo(state, record);
		case SAGA_RECORD_STUCK:
			return apply_stuck(state, record);
		case SAGA_RECORD_PAUSED:
			if (state->paused || state->terminating)
				return false;
			state->paused = true;
			return true;
		case SAGA_RECORD_RESUMED:
			if (!state->paused && !state->deadline_stuck)
				return false;
			state->paused = false;
			state->deadline_stuck = false;
			machine_choose_stuck(state);
			return true;
		case SAGA_RECORD_TERMINATING:
			if (state->terminating)
				return false;
			state->terminating = true;
			return true;
		case SAGA_RECORD_HOOK:
			return apply_hook(state, record);
		case SAGA_RECORD_ENDED:
			return apply_ended(state, record);
		case SAGA_RECORD_CHOSEN:
		case SAGA_RECORD_EXPANDED:
		case SAGA_RECORD_ITERATION:
		case SAGA_RECORD_RESTARTED:
			return machine_apply_scope(state, record);
		case SAGA_RECORD_SIGNAL:
			return apply_signal(state, record);
		case SAGA_RECORD_DEADLINE:
			return apply_deadline(state, record);
		case SAGA_RECORD_BREAKPOINT:
			return apply_breakpoint(state, record);
		case SAGA_RECORD_REOPENED:
			return apply_reopened(state, record);
		case SAGA_RECORD_MIGRATED:
		case SAGA_RECORD_OPTIONS:
			return true;			/* notes */
		default:
			return false;
	}
}

/* What users see, of all that is true at once. */
static SagaStateName
visible_state(const SagaState *state)
{
	if (SAGA_STATE_ENDED(state->state))
		return state->state;
	if (state->nstuck > 0 || state->deadline_stuck)
		return SAGA_STUCK;
	if (state->paused)
		return SAGA_PAUSED;
	if (state->nwaiting > 0 && state->nbusy == 0 && !state->terminating)
		return SAGA_WAITING;
	return SAGA_RUNNING;
}

bool
saga_machine_apply(SagaState *state, const SagaRecord *record)
{
	if (record->seq != state->seq + 1 ||
		SAGA_STATE_ENDED(state->state) !=
		(record->kind == SAGA_RECORD_REOPENED) ||
		(record->kind == SAGA_RECORD_STARTED) != (state->seq == 0))
		return false;
	if (!apply_by_kind(state, record))
		return false;
	state->seq = record->seq;
	if (record->kind == SAGA_RECORD_REOPENED)
		state->state = SAGA_RUNNING;
	state->state = visible_state(state);
	return true;
}
